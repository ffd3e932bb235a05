"""The rows that a study trains on, is measured on, and must not get worse on, as validated examples."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.data.bad_rows import BadRows
from lora_lab.data.classes import class_names, known_only
from lora_lab.data.examples import Example, Labeled, content_hash
from lora_lab.data.formats import validate
from lora_lab.data.locations import Location, find
from lora_lab.data.mixing import held_out, mixed
from lora_lab.study.data_settings import DatasetRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_lab.study.data_settings import DataSettings, Purpose


OVERLAPS: Mapping[Purpose, tuple[str, str]] = {
    "eval": ("must not be the training rows", "give a share such as 0.1, another file, or another split"),
    "test": ("must be rows that neither train nor choose", "give another file, or another split"),
}
"""Datasets that have no row in common with those before them: the rule, and what to do."""


@dataclass(frozen=True, slots=True)
class LoadedExamples:
    """The validated examples of one split."""

    examples: tuple[Example, ...]
    source: str
    """What a reader of a message or a log should know: the path as given, and the split."""
    content_hash: str
    """The sha256 of the examples' content."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, slots=True)
class ExampleSplits:
    """What a study trains on, is measured on, and must not get worse on."""

    train: LoadedExamples
    eval: LoadedExamples
    forgetting: LoadedExamples | None
    notes: tuple[str, ...]
    """What the user should know, those of the three parts included."""
    contents: Mapping[str, str]
    """The content hash of each source as it was read, before rows were held out or left off: `data.train: x.jsonl`."""
    classes: tuple[str, ...] = ()
    """The classes of the rows, in their order, where they have classes."""
    test: LoadedExamples | None = None
    """Rows that choose nothing, where the study has them (`data.test`)."""


def load_examples(ref: DatasetRef, purpose: Purpose, cache_folder: Path) -> LoadedExamples:
    """The examples that a reference in the study file means; only the first `max_examples` rows are read.

    Raises:
        InputError: there is no such dataset or split; too few or bad rows, by file and line.
    """
    bad = BadRows()
    loaded, _ = bad.settle_after(lambda: _load(find(ref, purpose, cache_folder), ref, cache_folder, bad, {}))
    return loaded


def load_splits(
    data: DataSettings, cache_folder: Path, *, bad: BadRows | None = None, classes: Sequence[str] | None = None
) -> ExampleSplits:
    """Training, evaluation and (where asked for) forgetting examples; the same for all trials and seeds.

    Args:
        data: The study's settings.
        cache_folder: For generated and converted datasets.
        bad: Takes the bad rows; by default they are refused, or left out, as the settings say.
        classes: Read rows with their classes, which must be of these; where it is empty, of those of the training
            rows. None reads text.

    Raises:
        InputError: as `load_examples` does; a share that leaves no row; evaluation on the rows that are trained on;
            only one class.
    """
    if bad is not None:
        return _load_splits(data, cache_folder, bad, classes)
    own = BadRows(data.skip_invalid)
    splits, notes = own.settle_after(lambda: _load_splits(data, cache_folder, own, classes))
    return replace(splits, notes=(*splits.notes, *notes))


def _load_splits(data: DataSettings, cache_folder: Path, bad: BadRows, classes: Sequence[str] | None) -> ExampleSplits:
    def load(place: Location, ref: DatasetRef, *, must_have: bool = True) -> LoadedExamples:
        return _load(place, ref, cache_folder, bad, columns, must_have=must_have, labeled=classes is not None)

    columns = data.columns.given() if data.columns else {}
    places = [find(ref, "train", cache_folder) for ref in data.train_refs]
    _refuse_twice(places)
    trained = [load(place, ref) for place, ref in zip(places, data.train_refs, strict=True)]
    others = {purpose: load(place, ref, must_have=False) for purpose, place, ref in _others(data, places, cache_folder)}
    evaluation, test = others.get("eval"), others.get("test")
    contents = {f"data.train: {one.source}": one.content_hash for one in trained}
    contents |= {f"data.{purpose}: {one.source}": one.content_hash for purpose, one in others.items()}
    names: tuple[str, ...] = ()
    if classes is not None:
        names = tuple(classes) or _class_names(trained, bad)
        trained = [_of_known_classes(one, names, bad) for one in trained]
        evaluation = None if evaluation is None else _of_known_classes(evaluation, names, bad)
        test = None if test is None else _of_known_classes(test, names, bad)
    if evaluation is None:
        assert isinstance(data.eval, float)
        trained, evaluation = _hold_out(trained, data.eval)
    train = _mix(trained, [ref.weight for ref in data.train_refs])
    if data.max_train_examples is not None:
        train = _first(train, data.max_train_examples)
    forgetting = others.get("forgetting")
    parts = [part for part in (train, evaluation, test, forgetting) if part is not None]
    notes = [*(note for part in parts for note in part.notes), *_repeated(train, evaluation, test)]
    return ExampleSplits(train, evaluation, forgetting, tuple(dict.fromkeys(notes)), contents, names, test)


def _others(
    data: DataSettings, trained: Sequence[Location], cache_folder: Path
) -> Iterator[tuple[Purpose, Location, DatasetRef]]:
    """The datasets that are measured on, by what they are for."""
    used = list(trained)
    purposes: tuple[Purpose, ...] = ("eval", "test", "forgetting")
    for purpose in purposes:
        ref = getattr(data, purpose)
        if isinstance(ref, DatasetRef):
            place = find(ref, purpose, cache_folder)
            for other in used if purpose in OVERLAPS else ():
                if other.overlaps(place):
                    rule, way_out = OVERLAPS[purpose]
                    raise InputError(
                        f"data.{purpose}: {rule}, but {place.source} has rows of {other.source}; {way_out}"
                    )
            used.append(place)
            yield purpose, place, ref


def _class_names(trained: Sequence[LoadedExamples], bad: BadRows) -> tuple[str, ...]:
    labels = [example.label for one in trained for example in one.examples if isinstance(example, Labeled)]
    if not labels:
        bad.settle()  # there is none because all rows are bad
    return class_names(labels, " and ".join(one.source for one in trained))


def _of_known_classes(loaded: LoadedExamples, names: Sequence[str], bad: BadRows) -> LoadedExamples:
    labeled = [example for example in loaded.examples if isinstance(example, Labeled)]
    return _part(loaded, known_only(labeled, names, bad), loaded.source)


def _refuse_twice(places: Sequence[Location]) -> None:
    for index, place in enumerate(places):
        for other in places[:index]:
            if place.overlaps(other):
                raise InputError(
                    f"data.train: datasets must differ, but {other.source} and {place.source} have rows in common; "
                    "give one of them a weight instead"
                )


def _load(
    place: Location,
    ref: DatasetRef,
    cache_folder: Path,
    bad: BadRows,
    columns: Mapping[str, str],
    *,
    must_have: bool = True,
    labeled: bool = False,
) -> LoadedExamples:
    """The examples of a split; `columns` that none of its rows has are an error only if it `must_have` them."""
    rows = list(islice(place.rows(cache_folder), ref.max_examples))
    if ref.max_examples is not None and 0 < len(rows) < ref.max_examples:
        raise InputError(
            f"{place.source}: max_examples must not exceed the rows there are, but it is {ref.max_examples} "
            f"and there are {len(rows)}; lower or drop it"
        )
    if not must_have and not any(name in row.fields for row in rows for name in columns.values()):
        columns = {}
    examples, notes = validate(rows, place.source, bad, columns, labeled=labeled)
    if not examples and bad.skip:
        raise InputError(f"{place.source}: all {len(rows)} rows are bad; correct them, or drop data.skip_invalid")
    return LoadedExamples(examples, place.source, content_hash(examples), (*place.notes, *notes))


def _hold_out(loaded: Sequence[LoadedExamples], share: float) -> tuple[list[LoadedExamples], LoadedExamples]:
    """A share of every dataset for evaluation, and the rest."""
    chosen = [held_out(len(one), share) for one in loaded]
    count, n = sum(map(len, chosen)), sum(map(len, loaded))
    source = " and ".join(one.source for one in loaded)
    if not count > 0 or any(len(rows) == len(one) for rows, one in zip(chosen, loaded, strict=True)):
        raise InputError(
            f"data.eval: a share must leave at least one row on both sides, but {share} of the {n} rows of "
            f"{source} is {count}; change the share, or give a dataset of its own"
        )
    train = [
        _part(
            one,
            [example for index, example in enumerate(one.examples) if index not in rows],
            f"{one.source} (without {len(rows)} held out)" if rows else one.source,
        )
        for one, rows in zip(loaded, chosen, strict=True)
    ]
    evaluation = [one.examples[index] for one, rows in zip(loaded, chosen, strict=True) for index in sorted(rows)]
    whole = replace(loaded[0], notes=tuple(note for one in loaded for note in one.notes))
    return train, _part(whole, evaluation, f"{count} held out of {source}")


def _mix(loaded: Sequence[LoadedExamples], weights: Sequence[float | None]) -> LoadedExamples:
    if len(loaded) == 1:
        return loaded[0]
    times = [1.0 if weight is None else weight for weight in weights]
    order = mixed([len(one) for one in loaded], times)
    counts = [sum(of == number for of, _ in order) for number in range(len(loaded))]
    for one, weight, count in zip(loaded, times, counts, strict=True):
        if not count:
            raise InputError(
                f"data.train: a weight must leave at least one row, but {weight:g} of the {len(one)} rows of "
                f"{one.source} is none; raise it, or drop the dataset"
            )
    shares = "; ".join(
        f"{count} rows an epoch of {one.source} ({len(one)} rows, weight {weight:g}), {count / len(order):.0%}"
        for one, weight, count in zip(loaded, times, counts, strict=True)
    )
    whole = replace(
        loaded[0], notes=(*(note for one in loaded for note in one.notes), f"data.train: {shares} of the training rows")
    )
    examples = [loaded[of].examples[row] for of, row in order]
    return _part(whole, examples, " and ".join(one.source for one in loaded))


def _first(loaded: LoadedExamples, count: int) -> LoadedExamples:
    if count > len(loaded):
        raise InputError(
            f"data.max_train_examples must not exceed the training rows, but it is {count} and {loaded.source} has "
            f"{len(loaded)}; lower or drop it"
        )
    return _part(loaded, loaded.examples[:count], f"first {count} rows of {loaded.source}")


def _part(loaded: LoadedExamples, examples: Sequence[Example], source: str) -> LoadedExamples:
    return LoadedExamples(tuple(examples), source, content_hash(examples), loaded.notes)


def _repeated(train: LoadedExamples, evaluation: LoadedExamples, test: LoadedExamples | None) -> list[str]:
    notes = []
    if repeated := _shared(train, evaluation):
        count = f"{repeated} of {len(evaluation)} evaluation rows"
        notes.append(f"{evaluation.source}: {count} also stand in the training rows: there, eval_loss measures recall")
    for other, does in ((train, "train"), (evaluation, "choose")):
        if test is not None and (repeated := _shared(other, test)):
            notes.append(f"{test.source}: {repeated} of {len(test)} test rows also stand in the rows that {does}")
    return notes


def _shared(others: LoadedExamples, measured: LoadedExamples) -> int:
    """How many of the rows that are measured also stand in others."""
    known = set(others.examples)
    return sum(example in known for example in measured.examples)
