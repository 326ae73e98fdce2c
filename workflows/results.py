"""From the parts that shards left to the tables of the run: cases, metrics, rejects."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.arrays import open_maps
from storage.errors import LucencyError
from storage.ledger import Ledger
from storage.objects import Objects
from storage.records import Rejection
from storage.tables import concatenate, from_bytes, read_table, write_table
from tasks.cams.names import MEMORY_METHODS, MethodName
from tasks.consistency import consistency
from tasks.explain import ExplainSettings
from workflows.aggregates import border_attention, mean_by_class
from workflows.cases import MEMORY_LOGIT, sum_columns
from workflows.passes import pass_rejections
from workflows.remembering import memory_measures
from workflows.survey import ArchiveFacts

_ALL = "(all)"
_MEMORY = "m-cam"
_METRICS = pa.schema(
    [
        ("method", pa.string()),
        ("class", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int64()),
    ]
)


def finish_tables(
    run: Objects, facts: ArchiveFacts, settings: ExplainSettings, class_names: Sequence[str], border: float
) -> dict[str, int]:
    """Write rejected.parquet, cases.parquet and metrics.parquet; returns the counts of the run.

    Raises LucencyError when an image is neither explained nor rejected: nothing may be lost.
    """
    rejected = read_table(run, "rejected.parquet")
    found = [Rejection(**row) for row in rejected.to_pylist() if row["stage"] == "catalogue"]
    found += [*pass_rejections(run, "profile"), *pass_rejections(run, "maps")]
    unique = {item.id: item for item in reversed(found)}
    rows = [{"id": i.id, "stage": i.stage, "reason": i.reason} for i in sorted(unique.values(), key=lambda i: i.id)]
    write_table(run, "rejected.parquet", pa.Table.from_pylist(rows, schema=rejected.schema))
    ledger = Ledger(run, "maps")
    manifests = ledger.done()
    explained = sum(manifest.images for manifest in manifests.values())
    if explained + len(rows) != facts.catalogued:
        raise LucencyError(
            f"{facts.catalogued} catalogued, but {explained} explained and {len(rows)} rejected: "
            "an image was lost or counted twice. This is a fault of Lucency; the run is kept as it is."
        )
    first = from_bytes(ledger.output(0, "parquet"))
    parts = (from_bytes(ledger.output(shard, "parquet")) for shard in sorted(manifests))
    concatenate(run, "cases.parquet", parts, first.schema)
    metrics = [
        *_metrics(run, first.schema, class_names),
        *_attention(run, settings, class_names, border),
        *(
            _row(_MEMORY, name or _ALL, measure, value, n)
            for name, measure, value, n in memory_measures(run, class_names)
        ),
    ]
    write_table(run, "metrics.parquet", pa.Table.from_pylist(metrics, schema=_METRICS))
    return {"catalogued": facts.catalogued, "explained": explained, "rejected": len(rows)}


def _metrics(run: Objects, schema: pa.Schema, class_names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One measure a row, over all cases and for each class that has some.

    A method's column is read when its turn comes: what is held does not grow with the number of methods.
    """
    cases = read_table(run, "cases.parquet", ["class", "logit", "probability", "label", "predicted"])
    groups = list(_by_class(cases["class"].to_numpy(), class_names))
    logits, probabilities = cases["logit"].to_numpy(), cases["probability"].to_numpy()
    predicted = cases["predicted"].to_numpy()
    correct = pc.cast(cases["label"], pa.float32()).to_numpy()  # NaN: not labelled
    for group, chosen in groups:
        count = len(logits[chosen])
        scored = correct[chosen][predicted[chosen] & ~np.isnan(correct[chosen])]
        yield _row("model", group, "cases", float(count), count)
        yield _row("model", group, "mean probability", _mean(probabilities[chosen]), count)
        yield _row("model", group, "precision of the predicted class", _mean(scored), len(scored))
    for method in sum_columns(schema):
        sums = read_table(run, "cases.parquet", [method])[method].to_numpy()
        if MethodName.parse(method.rpartition(".")[0]).base in MEMORY_METHODS:  # explains another classifier's logit
            explained = read_table(run, "cases.parquet", [MEMORY_LOGIT])[MEMORY_LOGIT].to_numpy()
        else:
            explained = logits
        for group, chosen in groups:
            agreement = consistency(explained[chosen], sums[chosen])
            yield _row(method, group, "consistency.pearson", agreement.pearson, agreement.n)
            yield _row(method, group, "consistency.spearman", agreement.spearman, agreement.n)


def _by_class(
    classes: np.ndarray[Any, Any], names: Sequence[str]
) -> Iterator[tuple[str, slice | np.ndarray[Any, Any]]]:
    """All cases, then those of each class that has some, in their order."""
    yield _ALL, slice(None)
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    for index, chosen in zip(present, np.split(order, starts)[1:], strict=True):
        yield names[index], chosen


def _attention(
    run: Objects, settings: ExplainSettings, class_names: Sequence[str], border: float
) -> Iterator[dict[str, Any]]:
    classes = np.asarray(open_maps(run, "classes")[...])
    for method in (str(method) for method in settings.methods if not method.scaled):
        attention = border_attention(run, method, border)
        for name, value, count in mean_by_class(attention, classes, class_names):
            yield _row(method, name or _ALL, "border attention", value, count)


def _mean(values: Sequence[float] | np.ndarray[Any, Any]) -> float:
    return float(np.mean(values, dtype=np.float64)) if len(values) else float("nan")


def _row(method: str, group: str, measure: str, value: float, n: int) -> dict[str, Any]:
    return {"method": method, "class": group, "measure": measure, "value": value, "n": n}
