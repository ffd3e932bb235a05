"""Trials that are not trained themselves, or not from their beginning: who has whose outcome, files and checkpoint.

What is written comes in an order that makes a kill at any moment harmless. A trial that was asked for gets its files,
then is told. One that is added is told whole, in one transaction, then gets its files, if need be when the study is
opened again. The engine tells a milestone again to whoever takes the trial up before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Collection

    from lora_lab.results.folder import RunFolder
    from lora_lab.runner.announcer import Books
    from lora_lab.runner.sharing import Origin, Sharing, Shorter
    from lora_lab.search.records import Asked
    from lora_lab.search.store import StudyStore
    from lora_lab.study.events import Milestone


class Handover:
    """Gives trials the outcomes of others.

    Args:
        store: The search and its storage.
        folder: The study's files.
        sharing: Knows who trains what, and who waits for whom.
        books: Tells the journal and the user.
        waiting: Trials that will be trained; those that go on by themselves are put here.
    """

    def __init__(
        self, store: StudyStore, folder: RunFolder, sharing: Sharing, books: Books, waiting: deque[Asked]
    ) -> None:
        self._store, self._folder, self._sharing = store, folder, sharing
        self._books, self._waiting = books, waiting

    def follow(self, asked: Asked, origin: Origin) -> None:
        """Let a trial have the outcome of an equivalent or of a longer one, now or when it is there."""
        if origin.number in self._sharing.ended:
            self._share(asked.number, origin.number)
        else:
            self._sharing.follow(asked, origin)

    def release(self, number: int, *, has_value: bool) -> None:
        """Give the followers of a trial that is over its outcome."""
        for follower in self._sharing.end(number, has_value=has_value):
            if follower.epochs is None or not has_value:
                self._share(follower.asked.number, number)
            else:  # a kill took what it waited for
                self._waiting.append(follower.asked)
        self._folder.drop_shorter(number)

    def give(self, event: Milestone, training: Collection[int]) -> None:
        """Pass on what a trial has come to: to the one that waits for it, or to a new one.

        Args:
            event: What it has come to.
            training: Trials that train now, or did until this moment: they need nothing.
        """
        shorter = self._sharing.give(event.number, event.epochs)
        if shorter is not None:
            number = self._sharing.owner(shorter.identity)
            if number is None or (number not in self._sharing.ended and number not in training):
                (self._branch if event.is_branch else self._read_off)(event, shorter, number)
        self._folder.drop_shorter(event.number, event.epochs)

    def _read_off(self, event: Milestone, shorter: Shorter, number: int | None) -> None:
        """Tell a trial that ends here."""
        if number is None:
            number = self._store.add_read_off(event.number, shorter.params, event.metrics, event.evaluation)
            if number is None:
                return
            self._sharing.own(shorter.identity, number)
            self._folder.adopt_shorter(event.number, event.epochs, number)
        else:
            self._called_back(number)
            self._folder.adopt_shorter(event.number, event.epochs, number)
            self._store.share(number, event.number, metrics=event.metrics, evaluations=event.evaluation)
        self._conclude_shared(number)

    def _branch(self, event: Milestone, shorter: Shorter, number: int | None) -> None:
        """Let a trial go on from here by itself, as soon as there is a place for it."""
        if number is None:
            asked = self._store.add_branch(event.number, shorter.params, event.evaluation)
            if asked is None:
                return
            self._sharing.own(shorter.identity, asked.number)
        else:
            asked = self._called_back(number)
            if asked.config == shorter.config:  # a checkpoint belongs to one way of writing what is equivalent
                asked = self._store.branch(number, event.number, event.evaluation)
        if asked.branched_from is not None:
            self._folder.adopt_shorter(event.number, event.epochs, asked.number)
        self._waiting.append(asked)

    def _called_back(self, number: int) -> Asked:
        """A trial that waits for another, or for a place, and now waits no longer."""
        for asked in self._waiting:
            if asked.number == number:
                self._waiting.remove(asked)
                return asked
        return self._sharing.leave(number)

    def _share(self, number: int, source: int) -> None:
        self._store.share(number, source)
        self._folder.drop_trial(number)
        self._conclude_shared(number)

    def _conclude_shared(self, number: int) -> None:
        result = self._store.result(number)
        self._books.shared(result, self._store.result)
        self.release(number, has_value=result.has_value)
