"""Rows of metrics.parquet from the tables of a run: means and correlations, with intervals by patient."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.objects import Objects
from storage.tables import read_table
from tasks.consistency import consistency, ranks
from tasks.measures.intervals import Bootstrap, patient_groups
from tasks.measures.names import COLUMNS
from tasks.reductions.grouped import GroupedSums
from workflows.configuration_measures import Measures

EVERY_CLASS = "(all)"
METRICS = pa.schema(
    [
        ("method", pa.string()),
        ("class", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),  # null: no interval
        ("high", pa.float64()),
        ("n", pa.int64()),
    ]
)
_CLASSES_AT_ONCE = 64
_WITHOUT = (np.nan, np.nan)

Row = dict[str, Any]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Column:
    """What a column of values is the metric of: their mean times factor."""

    method: str
    measure: str
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Patients:
    """Who is drawn together. groups [N] int32: of each image of the run, by its row."""

    groups: NDArray[np.int32]
    bootstrap: Bootstrap

    @classmethod
    def read(cls, run: Objects, measures: Measures) -> Self:
        catalogue = read_table(run, "catalogue.parquet", ["row", "patient"])
        names = catalogue.filter(pc.greater_equal(catalogue["row"], 0))["patient"].combine_chunks()
        codes = names.dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)
        groups = patient_groups(codes, seed=measures.seed)
        count = int(groups.max(initial=-1)) + 1
        drawn = Bootstrap.seeded(
            count, replicates=measures.replicates, confidence=measures.confidence, seed=measures.seed
        )
        return cls(groups, drawn)

    @property
    def count(self) -> int:
        """Of groups."""
        return int(self.bootstrap.draws.shape[1])

    def sums(self, classes: Array, rows: Array, values: Sequence[Array]) -> GroupedSums:
        """Of columns of values, NaN where unknown; classes and rows of the images that they are of."""
        return GroupedSums.of(self.count, classes, self.groups[rows], np.stack(values, axis=1).astype(np.float64))


def row(
    method: str, category: str, measure: str, value: float, n: int, interval: tuple[float, float] = _WITHOUT
) -> Row:
    low, high = (None if np.isnan(end) else float(end) for end in interval)
    return {
        "method": method, "class": category, "measure": measure, "value": float(value), "low": low, "high": high, "n": n
    }  # fmt: skip


def measured(name: str) -> Column:
    """What a column `<variant>.<measure>` of cases.parquet is the metric of. Raises KeyError."""
    method, _, column = name.partition(".")
    return Column(method, COLUMNS[column].name, COLUMNS[column].factor)


def means(
    sums: GroupedSums, columns: Sequence[Column], class_names: Sequence[str], bootstrap: Bootstrap
) -> Iterator[Row]:
    """The mean of each column over all cases and for each class, where some are known."""
    yield from _means(sums.of_all_classes(), columns, [EVERY_CLASS], bootstrap)
    yield from _means(sums, columns, class_names, bootstrap)


def _means(sums: GroupedSums, columns: Sequence[Column], names: Sequence[str], bootstrap: Bootstrap) -> Iterator[Row]:
    for start in range(0, len(sums.classes), _CLASSES_AT_ONCE):
        classes = sums.classes[start : start + _CLASSES_AT_ONCE]
        for index, column in enumerate(columns):
            totals, counts = sums.dense(index, classes)
            ends = bootstrap.mean_interval(totals, counts)
            for category, total, known, *interval in zip(classes, totals.sum(0), counts.sum(0), *ends, strict=True):
                if known:
                    value, low, high = (column.factor * number for number in (total / known, *interval))
                    yield row(column.method, names[category], column.measure, value, int(known), (low, high))


def by_class(classes: Array, names: Sequence[str]) -> Iterator[tuple[str, slice | Array]]:
    """All cases, then those of each class that has some, in their order."""
    yield EVERY_CLASS, slice(None)
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    for index, chosen in zip(present, np.split(order, starts)[1:], strict=True):
        yield names[index], chosen


def answers(cases: pa.Table, class_names: Sequence[str], patients: Patients) -> Iterator[Row]:
    """How sure the model is of the cases, and how often it predicts a class rightly."""
    classes = cases["class"].to_numpy()
    for name, chosen in by_class(classes, class_names):
        count = len(classes[chosen])
        yield row("model", name, "cases", float(count), count)
    correct = pc.cast(cases["label"], pa.float32()).to_numpy()  # NaN: not labelled
    scored = np.where(cases["predicted"].to_numpy(), correct, np.nan)
    sums = patients.sums(classes, cases["row"].to_numpy(), [cases["probability"].to_numpy(), scored])
    columns = [Column("model", "mean probability"), Column("model", "precision of the predicted class")]
    yield from means(sums, columns, class_names, patients.bootstrap)


def agreement(
    method: str,
    groups: Sequence[tuple[str, slice | Array]],
    logits: Array,
    sums: Array,
    members: Array,
    *,
    bootstrap: Bootstrap,
) -> Iterator[Row]:
    """How well a map's sums follow the logits [N] of the cases, over all and in each class; members [N]: the groups of
    patients that the cases are of."""
    for name, chosen in groups:
        known = ~(np.isnan(logits[chosen]) | np.isnan(sums[chosen]))
        x, y = (side[chosen][known].astype(np.float64) for side in (logits, sums))
        found, drawn = consistency(x, y), members[chosen][known]
        pearson = bootstrap.correlation_interval(x, y, drawn)
        spearman = bootstrap.correlation_interval(ranks(x), ranks(y), drawn)
        yield row(method, name, "consistency.pearson", found.pearson, found.n, pearson)
        yield row(method, name, "consistency.spearman", found.spearman, found.n, spearman)
        yield row(method, name, "consistency", found.chosen, found.n, pearson if found.normal else spearman)
        yield row(method, name, "consistency.normal", float(found.normal), found.n)


def judged(cases: pa.Table, columns: Sequence[str], class_names: Sequence[str], patients: Patients) -> Iterator[Row]:
    """The measures of maps, from some of their columns."""
    values = [cases[name].to_numpy() for name in columns]
    sums = patients.sums(cases["class"].to_numpy(), cases["row"].to_numpy(), values)
    yield from means(sums, [measured(name) for name in columns], class_names, patients.bootstrap)


def attention(
    method: str, border: Array, classes: Array, class_names: Sequence[str], patients: Patients
) -> Iterator[Row]:
    """The mean share of a method's maps that lies in the border. border [N,T], NaN where a map has no activation;
    classes [N,T], -1 where there is no map."""
    rows, targets = np.nonzero(classes >= 0)
    sums = patients.sums(classes[rows, targets], rows, [border[rows, targets]])
    yield from means(sums, [Column(method, "border attention")], class_names, patients.bootstrap)


def accuracies(images: pa.Table, patients: Patients) -> Iterator[Row]:
    """How often the model is right, and how often with some features alone: of images.parquet without its logits."""
    names = [name for name in images.column_names if name not in ("id", "row")]
    columns = []
    for name in names:
        base, _, kept = name.partition(".")
        columns.append(Column(base, f"accuracy.{kept}") if kept else Column("model", name))
    rows = images["row"].to_numpy()
    if names:
        sums = patients.sums(np.zeros_like(rows), rows, [images[name].to_numpy() for name in names])
        yield from _means(sums, columns, [EVERY_CLASS], patients.bootstrap)


def concepts(table: pa.Table, class_names: Sequence[str], patients: Patients) -> Iterator[Row]:
    """How many concepts lie in an image's boxes: all of them (class -1), and those of each class."""
    columns = [Column("model", "concepts.disjoint"), Column("model", "concepts.unique")]
    values = [table[name].to_numpy() for name in ("disjoint", "unique")]
    sums = patients.sums(table["class"].to_numpy() + 1, table["row"].to_numpy(), values)
    yield from _means(sums, columns, [EVERY_CLASS, *class_names], patients.bootstrap)
