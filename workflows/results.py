"""From the parts that shards left to the tables of the run: cases, metrics, rejects."""

import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from storage.arrays import open_maps
from storage.errors import LucencyError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from storage.records import Rejection
from storage.tables import concatenate, each_group, from_bytes, read_table, table_schema, write_table
from tasks.explain import ExplainSettings
from workflows.aggregates import border_attention
from workflows.case_metrics import case_metrics, map_metrics
from workflows.cases import TABLES, measure_columns
from workflows.configuration import Configuration
from workflows.judging import unmeasured
from workflows.metrics import (
    EVERY_CLASS,
    METRICS,
    Patients,
    Row,
    accuracies,
    attention,
    concepts,
    row,
)
from workflows.models import ModelDescription
from workflows.parallel import Each, on_ray
from workflows.passes import pass_rejections
from workflows.performance import Labels, class_columns, performance
from workflows.remembering import memory_measures
from workflows.sanity_results import sanity_metrics
from workflows.survey import ArchiveFacts

_MEMORY = "m-cam"


def finish_tables(
    run: Objects,
    configuration: Configuration,
    model: ModelDescription,
    facts: ArchiveFacts,
    settings: ExplainSettings,
) -> dict[str, int]:
    """Write rejected.parquet, cases.parquet and metrics.parquet, add to left_out.json; returns the counts of the run.

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
    for table in TABLES:
        _join(run, ledger, manifests, table)
    schema = table_schema(run, "cases.parquet")
    patients = Patients.read(run, configuration.measures)
    ranked, left = _performance(run, configuration, model, patients, each=on_ray)
    metrics = [
        *case_metrics(run, schema, model.classes, patients, each=on_ray),
        *map_metrics(run, measure_columns(schema), model.classes, patients, each=on_ray),
        *ranked,
        *_of_images(run, model.classes, patients),
        *_attention(run, settings, model.classes, configuration.explain.border, patients),
        *(
            row(_MEMORY, name or EVERY_CLASS, measure, value, n)
            for name, measure, value, n in memory_measures(run, model.classes)
        ),
        *(row(name, EVERY_CLASS, measure, value, n) for name, measure, value, n in sanity_metrics(run)),
    ]
    write_table(run, "metrics.parquet", pa.Table.from_pylist(metrics, schema=METRICS))
    told = {row["measure"] for row in metrics if row["class"] == EVERY_CLASS}
    missing = unmeasured(settings.measures.groups, told)
    _leave_out(run, [*left, *((item.measure, item.category, item.reason) for item in missing)])
    return {"catalogued": facts.catalogued, "explained": explained, "rejected": len(rows)}


def _join(run: Objects, ledger: Ledger, manifests: Mapping[int, Manifest], table: str) -> None:
    """The shards' parts of a table, one behind the other; no table where shards have none."""
    shards = sorted(manifests)
    if table not in manifests[shards[0]].sha256:
        run.delete(table)
        return
    parts = (from_bytes(ledger.output(shard, table)) for shard in shards)
    concatenate(run, table, parts, from_bytes(ledger.output(shards[0], table)).schema)


def _performance(
    run: Objects, configuration: Configuration, model: ModelDescription, patients: Patients, *, each: Each = map
) -> tuple[list[Row], list[tuple[str, str, str]]]:
    """How well the model tells the classes apart, and for which classes that cannot be said."""
    if "performance" not in configuration.measures.include or not run.exists("images.parquet"):
        return [], []
    names = read_table(run, "catalogue.parquet", ["labels"])["labels"]  # the readable ones first, by row
    rows = read_table(run, "images.parquet", ["row"])["row"].to_numpy()
    parts = each_group(run, "images.parquet", ["logits"])
    spill = configuration.engine.spill
    with class_columns(parts, rows, len(model.classes), model.task, spill=spill) as said:
        return performance(said, Labels.of(names, model.classes), model.classes, patients, each=each)


def _of_images(run: Objects, class_names: Sequence[str], patients: Patients) -> Iterator[Row]:
    """What is measured of whole images: how often the model is right, and how many concepts are in their boxes."""
    if run.exists("images.parquet"):
        names = [name for name in table_schema(run, "images.parquet").names if name != "logits"]
        yield from accuracies(read_table(run, "images.parquet", names), patients)
    if run.exists("concepts.parquet"):
        yield from concepts(read_table(run, "concepts.parquet"), class_names, patients)


def _leave_out(run: Objects, found: Sequence[tuple[str, str | None, str]]) -> None:
    """Add to what the run left out: measure, class and reason; what is listed is not listed again."""
    known = json.loads(run.get("left_out.json")) if run.exists("left_out.json") else []
    new = [dict(zip(("measure", "class", "reason"), item, strict=True)) for item in found]
    run.put("left_out.json", json.dumps([*known, *(item for item in new if item not in known)], indent=1).encode())


def _attention(
    run: Objects, settings: ExplainSettings, class_names: Sequence[str], border: float, patients: Patients
) -> Iterator[Row]:
    classes = np.asarray(open_maps(run, "classes")[...])
    for method in (str(method) for method in settings.methods if not method.scaled):
        yield from attention(method, border_attention(run, method, border), classes, class_names, patients)
