"""Rows of metrics.parquet from the tables of all cases, some columns in each Ray task.

A task's process imports this module and what it imports: neither PyTorch nor Dask, which take seconds.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

import pyarrow as pa

from storage.objects import Objects
from storage.tables import read_table
from tasks.cams.names import MEMORY_METHODS, MethodName
from workflows.cases import MEMORY_LOGIT, sum_columns
from workflows.metrics import Patients, Row, agreement, answers, by_class, judged
from workflows.parallel import Each

_COLUMNS_AT_ONCE = 4  # of measures: they and their sums by class and group of patients are held


def case_metrics(
    run: Objects, schema: pa.Schema, class_names: Sequence[str], patients: Patients, *, each: Each = map
) -> Iterator[Row]:
    """What the model says of the cases, and how maps follow their logits."""
    cases = read_table(run, "cases.parquet", ["row", "class", "logit", "probability", "label", "predicted"])
    yield from answers(cases, class_names, patients)
    del cases
    yield from chain.from_iterable(each(partial(_agreement, run, class_names, patients), sum_columns(schema)))


def _agreement(run: Objects, class_names: Sequence[str], patients: Patients, method: str) -> list[Row]:
    """How the maps of one method follow the logit that they explain: in M-CAM's case another classifier's."""
    remembered = MethodName.parse(method.rpartition(".")[0]).base in MEMORY_METHODS
    names = ["row", "class", MEMORY_LOGIT if remembered else "logit", method]
    rows, classes, logits, sums = (
        column.to_numpy() for column in read_table(run, "cases.parquet", names).select(names)
    )
    groups = list(by_class(classes, class_names))
    return list(agreement(method, groups, logits, sums, patients.groups[rows], bootstrap=patients.bootstrap))


def map_metrics(
    run: Objects, columns: Sequence[str], class_names: Sequence[str], patients: Patients, *, each: Each = map
) -> Iterator[Row]:
    """The measures of maps, some columns at a time."""
    parts = [columns[start : start + _COLUMNS_AT_ONCE] for start in range(0, len(columns), _COLUMNS_AT_ONCE)]
    yield from chain.from_iterable(each(partial(_judged, run, class_names, patients), parts))


def _judged(run: Objects, class_names: Sequence[str], patients: Patients, columns: Sequence[str]) -> list[Row]:
    cases = read_table(run, "cases.parquet", ["row", "class", *columns])
    return list(judged(cases, columns, class_names, patients))
