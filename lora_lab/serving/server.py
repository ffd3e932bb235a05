"""A base with adapters behind HTTP, from loading to Ctrl-C."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn

from lora_lab.analysis.wording import config_label, measure_text
from lora_lab.common.errors import InputError
from lora_lab.results.card import base_words
from lora_lab.serving.app import make_app
from lora_lab.serving.desk import Desk
from lora_lab.serving.members import BASE, Member, Members
from lora_lab.serving.writer import Writer
from lora_lab.training.adapted_base import AdaptedBase, Trained
from lora_lab.training.base.loading import default_device, load_base
from lora_lab.training.generation import end_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results
    from lora_lab.study.results import TrialResult

LOOPBACK = "127.0.0.1"
GRACE_S = 1
"""Seconds that open connections get at Ctrl-C; their answers are ended by then."""


@dataclass(frozen=True, slots=True)
class Served:
    """What is loaded."""

    members: Members
    desk: Desk

    def listed(self) -> Iterator[tuple[str, str]]:
        """The members in words: names, and what each is."""
        for one in self.members.all:
            yield one.name, ", ".join(filter(None, (*one.aliases, one.value, one.label)))


def load(results: Results, folder: RunFolder, chosen: Sequence[TrialResult]) -> Served:
    """Load the base of these trials, and their adapters onto it.

    Raises:
        InputError: the base cannot be loaded, or has no token that ends an answer.
        CheckpointError: an adapter is damaged.
    """
    base = load_base(chosen[0].config.model, default_device())
    limits = base.linears.limits
    known = [limit for limit in (limits.positions, limits.alike_up_to) if limit is not None]
    everyone = [_bare(results), *(_member(results, trial) for trial in chosen)]
    members = Members(everyone, base.tokenizer, min(known, default=None))
    ends = end_tokens(base.tokenizer, base.model) | members.turn_end()
    adapted = AdaptedBase(base, [None, *(Trained(one.config, folder.adapter_of(one)) for one in chosen)], rows=1)
    return Served(members, Desk(Writer(adapted, base.tokenizer, ends)))


def _bare(results: Results) -> Member:
    measure = results.findings.measure
    value = f"{measure.label} {measure_text(measure, results.findings.base_value)}"
    return Member(BASE, label=base_words(results.spec.model), value=value)


def _member(results: Results, trial: TrialResult) -> Member:
    measure = results.findings.measure
    value = trial.metrics.get(measure.name)
    return Member(
        f"trial-{trial.number}",
        aliases=results.findings.roles(trial.number),
        label=config_label(trial.config, trial.params),
        value="" if value is None else f"{measure.label} {measure_text(measure, value)}",
    )


def run(served: Served, port: int, say: Callable[[str], object]) -> None:
    """Answer on 127.0.0.1 until Ctrl-C or SIGTERM.

    Args:
        served: What answers.
        port: 0 for any that is free.
        say: Told the address once requests are taken.

    Raises:
        InputError: the port is taken.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((LOOPBACK, port))
            listening.listen()  # from here on questions wait, until the server takes them
        except OSError as error:
            raise InputError(f"--port: {port} cannot be used ({error.strerror}); give another, or 0 for any") from None
        say(f"serving on http://{LOOPBACK}:{listening.getsockname()[1]} until Ctrl-C")
        config = uvicorn.Config(
            make_app(served.members, served.desk),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_S,
        )
        server = _Server(config, served.desk)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again that it ended by
            server.run(sockets=[listening])
        served.desk.close()


class _Server(uvicorn.Server):
    """Ends open answers as soon as it is asked to end, so that no connection keeps it."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    def handle_exit(self, sig: int, frame: object) -> None:
        self._desk.close()
        super().handle_exit(sig, frame)  # type: ignore[arg-type]
