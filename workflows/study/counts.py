"""What a study learned from and was audited on: images, patients and classes of each split."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from storage.objects import Objects
from storage.tables import read_table

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class SplitCount:
    """patients: None where some are not known; healthy: images that are known to have no finding at all."""

    name: str
    images: int
    patients: int | None
    healthy: int
    boxed: int


@dataclass(frozen=True, slots=True)
class ClassCount:
    """images: by split, in the order of SPLITS; ratio: negatives for each positive that is learned from."""

    name: str
    images: tuple[int, ...]
    ratio: float | None


@dataclass(frozen=True, slots=True)
class Counts:
    """rejected: reasons and how many images, the most frequent first."""

    splits: tuple[SplitCount, ...]
    classes: tuple[ClassCount, ...]
    rejected: tuple[tuple[str, int], ...]


def counts_of(study_run: Objects, classes: Sequence[str] | None) -> Counts:
    """From the study's catalogue, less what was rejected. classes: that are learned; None: all labels there are."""
    rejected = read_table(study_run, "rejected.parquet", ["id", "reason"])
    table = read_table(study_run, "catalogue.parquet", ["id", "patient", "labels", "boxes", "split"])
    table = table.filter(pc.invert(pc.is_in(table["id"], rejected["id"].combine_chunks())))
    parts = {name: table.filter(pc.fill_null(pc.equal(table["split"], name), False)) for name in SPLITS}
    positives = {name: _positives(part) for name, part in parts.items()}
    learned = list(classes) if classes is not None else sorted(set().union(*positives.values()))
    reasons = Counter(rejected["reason"].to_pylist())
    return Counts(
        tuple(_split(name, part) for name, part in parts.items()),
        tuple(_class(name, positives, len(parts["train"])) for name in learned),
        tuple(reasons.most_common()),
    )


def _positives(part: pa.Table) -> Counter[str]:
    found = pc.value_counts(part["labels"].combine_chunks().flatten()).to_pylist()
    return Counter({item["values"]: item["counts"] for item in found})


def _split(name: str, part: pa.Table) -> SplitCount:
    patients = len(pc.unique(part["patient"].drop_null()))
    healthy = pc.sum(pc.equal(pc.list_value_length(part["labels"]), 0)).as_py() or 0
    boxed = pc.sum(pc.greater(pc.list_value_length(part["boxes"]), 0)).as_py() or 0
    return SplitCount(name, len(part), None if part["patient"].null_count else patients, healthy, boxed)


def _class(name: str, positives: Mapping[str, Counter[str]], learned: int) -> ClassCount:
    own = positives["train"][name]
    ratio = (learned - own) / own if own else None
    return ClassCount(name, tuple(positives[split][name] for split in SPLITS), ratio)
