"""What a study learns from and what it is judged by: the archive's images with labels, each in one of three parts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.catalogue import arrange, labels_seen, readable_count, rejected_table
from storage.errors import ConfigurationError, LucencyError
from storage.records import Rejection
from tasks.splits import stratified
from workflows.cataloguing import build_catalogue
from workflows.configuration import Engine
from workflows.learned_split import groups_of
from workflows.progress import Progress
from workflows.study.configuration import Split, Study

PARTS = ("train", "validation", "test")
BINARY_CLASS = "Unhealthy"
STAGE = "split"
_SHOWN = 8
_UNLABELLED = "it has no label"
_ELSEWHERE = "it belongs to none of the splits that the study names"
_NOTHING = "archive.labels: of {} readable images, none has a label and is in one of the study's splits"
_ONE_SIDED = "split: each of train, validation and test needs images that have a class and images that do not have it:"


@dataclass(frozen=True, slots=True)
class StudyData:
    """The archive of a study. catalogued = train + validation + test + rejected.

    learned, test: by CATALOGUE_SCHEMA, arranged anew, column ``split`` is train, validation or test; whole: all that
    was catalogued, ``split`` null of what is in none; rejected: what cannot be read, and what is in no part (stage
    ``split``). classes: those of the multi-label task; notes: what a reader of the results must know.
    """

    learned: pa.Table
    test: pa.Table
    whole: pa.Table
    rejected: pa.Table
    rejected_boxes: pa.Table
    listing_sha256: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def task_classes(task: str, classes: Sequence[str]) -> tuple[str, ...]:
    """What a classifier of the task answers."""
    return (BINARY_CLASS,) if task == "binary" else tuple(classes)


def as_task(table: pa.Table, task: str, classes: Sequence[str]) -> pa.Table:
    """A catalogue with labels and boxes in the words of the task.

    binary: any label at all is BINARY_CLASS; multi-label: labels that are none of ``classes`` are dropped, and an image
    that loses all is labelled with nothing. What was unlabelled stays so.
    """
    word: Callable[[str], str] = (lambda label: BINARY_CLASS) if task == "binary" else (lambda label: label)
    kept = set(task_classes(task, classes))
    labels = [
        None if names is None else [name for name in dict.fromkeys(map(word, names)) if name in kept]
        for names in table["labels"].to_pylist()
    ]
    boxes = [
        None if drawn is None else [box | {"label": word(box["label"])} for box in drawn if word(box["label"]) in kept]
        for drawn in table["boxes"].to_pylist()
    ]
    return _replaced(_replaced(table, "labels", labels), "boxes", boxes)


def positive_of(table: pa.Table, classes: Sequence[str]) -> NDArray[np.bool_]:
    """Which of the classes each readable image of a catalogue has, bool [N,C]."""
    labels = table["labels"].slice(0, readable_count(table)).combine_chunks()
    positive = np.zeros((len(labels), len(classes)), bool)
    column = pc.index_in(pc.list_flatten(labels), value_set=pa.array(classes, pa.string()))
    known = pc.is_valid(column).to_numpy(zero_copy_only=False)
    positive[pc.list_parent_indices(labels).to_numpy()[known], column.drop_null().to_numpy()] = True
    return positive


def gather(study: Study, progress: Progress) -> StudyData:
    """Catalogue the archive and say which image is learned from, which ends the training and which is audited.

    Ray must be up. Raises ConfigurationError for labels and splits from which no study can be made, ArchiveError for an
    archive that cannot be listed.
    """
    built = build_catalogue(
        study.archive,
        shard_images=study.engine.shard_images,
        shard_bytes=study.engine.shard_bytes,
        progress=progress,
        classes=None,
    )
    readable = built.table.slice(0, readable_count(built.table))
    left_out = _left_out(study.split, readable)
    used = np.array([row for row in range(len(readable)) if row not in left_out], np.int64)
    table = readable.take(pa.array(used))
    if not len(table):
        raise ConfigurationError(_NOTHING.format(len(readable)))
    classes = _classes(study, table)
    parts = _parts(study.split, table, _strata(table, classes))
    table = _replaced(table, "split", parts)
    refuse_leaks(table)
    refuse_unlearnable(study, table, classes)
    notes = [*_notes_on_patients(table), *_notes_on_left_out(left_out), *_notes_on_boxes(study, table, classes)]
    for note in notes:
        progress.note(note)
    decided = np.full(len(built.table), None, object)
    decided[used] = parts
    data = StudyData(
        learned=_arranged(table, PARTS[:2], study.engine),
        test=_arranged(table, PARTS[2:], study.engine),
        whole=_replaced(built.table, "split", decided.tolist()),
        rejected=pa.concat_tables([built.rejected, rejected_table(left_out.values())]),
        rejected_boxes=built.rejected_boxes,
        listing_sha256=built.listing_sha256,
        classes=classes,
        notes=tuple(notes),
    )
    if len(data.learned) + len(data.test) + len(data.rejected) != len(data.whole):
        raise LucencyError(
            f"{len(data.whole)} catalogued, but {len(data.learned)} to learn from, {len(data.test)} to test with and "
            f"{len(data.rejected)} rejected: an image was lost or counted twice. This is a fault of Lucency."
        )
    return data


def refuse_leaks(table: pa.Table) -> None:
    """Raises ConfigurationError where a patient, or a file with its frames, is in two parts (column ``split``)."""
    groups = groups_of(table["patient"].to_pylist(), table["private_location"].to_pylist())
    seen = set(zip(groups, table["split"].to_pylist(), strict=True))
    parts = Counter(group for group, _ in seen)
    images = sum(parts[group] > 1 for group in groups)
    if images:
        raise ConfigurationError(
            f"split: {sum(count > 1 for count in parts.values())} patient(s), of {images} images, are in more than one "
            "of train, validation and test: classifiers would be judged by patients they have learned from. Give each "
            "patient one split in the label file, or leave split.train and split.test out and let the study draw."
        )


def _left_out(split: Split, readable: pa.Table) -> dict[int, Rejection]:
    """Images that are for nothing, by row."""
    named = {split.train, split.validation, split.test}
    rejections = {}
    ids, labels, splits = (readable[name].to_pylist() for name in ("id", "labels", "split"))
    for row, (identifier, label, name) in enumerate(zip(ids, labels, splits, strict=True)):
        if label is None:
            rejections[row] = Rejection(identifier, STAGE, _UNLABELLED)
        elif split.train is not None and name not in named:
            rejections[row] = Rejection(identifier, STAGE, _ELSEWHERE)
    return rejections


def _classes(study: Study, table: pa.Table) -> tuple[str, ...]:
    seen = labels_seen(table)
    if not seen:
        raise ConfigurationError(
            f"archive.labels: all {len(table)} labelled images are healthy: there is no class to learn."
        )
    missing = [name for name in study.classes or () if name not in seen]
    if missing:
        raise ConfigurationError(f"classes: no image is labelled {_listed(missing)}. Is it spelt as in the labels?")
    return tuple(study.classes or seen)


def _strata(table: pa.Table, classes: Sequence[str]) -> NDArray[np.bool_]:
    """What all parts have alike, bool [N,C+1]: the classes, and healthy images, without which none is negative."""
    healthy = pc.equal(pc.list_value_length(table["labels"]), 0).to_numpy()
    return np.column_stack([positive_of(table, classes), healthy])


def _parts(split: Split, table: pa.Table, strata: NDArray[np.bool_]) -> list[str]:
    """The part of each image: as named, and drawn where no name is given."""
    groups = groups_of(table["patient"].to_pylist(), table["private_location"].to_pylist())
    everyone = np.arange(len(table))
    if split.train is None:
        validation, test = float(split.validation), float(split.test)
        shares = {"train": (1 - test) * (1 - validation), "validation": (1 - test) * validation, "test": test}
        return _drawn(groups, strata, shares, split.seed)
    called = {getattr(split, part): part for part in PARTS}
    parts = np.array([called[name] for name in table["split"].to_pylist()], object)
    for name, part in called.items():
        if isinstance(name, str) and part not in parts:
            raise ConfigurationError(
                f"split.{part}: no labelled image belongs to {name!r} by the column archive.labels.split."
            )
    if not isinstance(split.validation, str):
        learned = everyone[parts == "train"]
        shares = {"train": 1 - split.validation, "validation": split.validation}
        parts[learned] = _drawn([groups[row] for row in learned], strata[learned], shares, split.seed)
    return list(parts)


def _drawn(groups: Sequence[str], strata: NDArray[np.bool_], shares: Mapping[str, float], seed: int) -> list[str]:
    found = len(set(groups))
    if found < len(shares):
        raise ConfigurationError(
            f"split: {found} labelled patient(s), or files that say none, are too few for {' and '.join(shares)}: each "
            "part has patients of its own. Give labels of more patients."
        )
    names = tuple(shares)
    return [names[part] for part in stratified(groups, strata, tuple(shares.values()), seed)]


def refuse_unlearnable(study: Study, table: pa.Table, classes: Sequence[str]) -> None:
    """Raises ConfigurationError where a part (column ``split``) lacks images that have a class, or that do not."""
    faults: list[str] = []
    for task in study.tasks:
        words = task_classes(task, classes)
        positive = positive_of(as_task(table, task, classes), words)
        parts = np.array(table["split"].to_pylist())
        for part in PARTS:
            here = positive[parts == part]
            if not here.any():
                faults.append(f"{task}, {part}: none of its {len(here)} images has any of the classes")
                continue
            faults += [
                f"{task}, {part}, {name!r}: {count} positive, {len(here) - count} negative"
                for name, count in zip(words, here.sum(0).tolist(), strict=True)
                if count in (0, len(here))
            ]
    if faults:
        more = [f"... ({len(faults)} in all)"] if len(faults) > _SHOWN else []
        ways = "another split.seed, other shares" if study.split.train is None else "another split in the label file"
        raise ConfigurationError(
            "\n  ".join([_ONE_SIDED, *faults[:_SHOWN], *more])
            + f"\nMerge such a class with another or leave it out of "
            f"`classes`, or give {ways}, or more labels. Images labelled as archive.labels.healthy are "
            "negative for every class."
        )


def _notes_on_patients(table: pa.Table) -> list[str]:
    missing = table["patient"].null_count
    if not missing:
        return []
    return [
        f"WARNING: {missing} of {len(table)} images do not say whose they are, and are split image by image: images of "
        "one patient may be in two of train, validation and test, and every measure better than it is on new patients. "
        "Give archive.labels.patient."
    ]


def _notes_on_left_out(left_out: Mapping[int, Rejection]) -> list[str]:
    reasons = Counter(rejection.reason for rejection in left_out.values())
    return [f"{count} readable image(s) are left out: {reason}" for reason, count in sorted(reasons.items())]


def _notes_on_boxes(study: Study, table: pa.Table, classes: Sequence[str]) -> list[str]:
    tested = table.filter(pc.equal(table["split"], "test"))
    notes = []
    for task in study.tasks:
        drawn = as_task(tested, task, classes)["boxes"].to_pylist()
        boxed = {box["label"] for boxes in drawn for box in boxes or ()}
        missing = [name for name in task_classes(task, classes) if name not in boxed]
        if missing:
            notes.append(
                f"{task}: no test image has a box of {_listed(missing)}: IoBB and concepts cannot be measured for it"
            )
    return notes


def _arranged(table: pa.Table, parts: Sequence[str], engine: Engine) -> pa.Table:
    rows = table.filter(pc.is_in(table["split"], pa.array(parts))).drop_columns(["row", "shard"])
    return arrange(rows, [], shard_images=engine.shard_images, shard_bytes=engine.shard_bytes)


def _replaced(table: pa.Table, column: str, values: Sequence[object]) -> pa.Table:
    index = table.schema.get_field_index(column)
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(values, field.type))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (f", ... ({len(names)} in all)" if len(names) > _SHOWN else "")
