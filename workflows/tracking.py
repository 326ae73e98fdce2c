"""One MLflow run for each audit: parameters, numbers, figures, the report. Nothing that may name a patient.

MLflow may be down. Then the audit is complete all the same: a warning says so, the ledger remembers it, and
logging again later fills the same MLflow run.
"""

import json
import logging
import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.objects import Objects
from workflows.configuration import Configuration
from workflows.mlflow_store import connected, kind_of, milliseconds, open_run, read_entry, write_entry
from workflows.report.figures import importance_figure, levels_figure, to_png
from workflows.report.record import Record
from workflows.report.results import EVERY_CLASS, Results, read_results
from workflows.report.tables import feature_order, shown_classes
from workflows.report.wording import limit_names

_CLASSES_SENT = 100  # of more, the measures of each would be most of what a server is sent, and no one reads them there
_DIGEST_CHARACTERS = 36  # what MLflow keeps of a dataset's digest
_LOG = logging.getLogger("lucency.mlflow")


@dataclass(frozen=True, slots=True)
class _Content:
    """All that is logged, ready to be sent."""

    name: str
    started: int  # milliseconds since 1970
    ended: int
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    archive: tuple[str, str]  # digest, profile as JSON
    files: Mapping[str, bytes]


def log_run(run: Objects, configuration: Configuration) -> str | None:
    """Log a finished run and return MLflow's run id, or None, with a warning, when MLflow did not take it.

    Calling it again updates the same MLflow run. Raises RunError when the run is not finished.
    """
    content = _content(run, read_results(run))
    tracking = configuration.mlflow
    entry = read_entry(run, tracking)
    try:
        with connected(tracking) as client:
            mlflow_run = open_run(client, tracking, entry.run, name=content.name, started=content.started)
            entry = replace(entry, logged=False, run=mlflow_run)
            write_entry(run, entry)
            _send(client, mlflow_run, content)
    except Exception as error:  # servers, databases and object stores fail in classes of their own
        write_entry(run, replace(entry, logged=False))
        _LOG.warning(
            "MLflow did not take the run (%s). Nothing is lost: `lucency report %s --log` logs it when MLflow is back.",
            kind_of(error),
            run.location,
        )
        return None
    write_entry(run, replace(entry, logged=True))
    return mlflow_run


def _send(client: Any, mlflow_run: str, content: _Content) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    known = client.get_run(mlflow_run).data.params  # a parameter may be written once
    params = [Param(key, value) for key, value in content.params.items() if key not in known]
    metrics = [Metric(key, value, content.ended, 0) for key, value in content.metrics.items()]
    tags = [RunTag(key, value) for key, value in content.tags.items()]
    client.log_batch(mlflow_run, metrics, params, tags)  # the client cuts it into what a server takes at once
    digest, profile = content.archive
    archive = Dataset("archive", digest, "code", json.dumps({"tags": {}}), profile=profile)
    client.log_inputs(mlflow_run, [DatasetInput(archive, [InputTag("mlflow.data.context", "audit")])])
    with tempfile.TemporaryDirectory() as folder:
        for name, data in content.files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        client.log_artifacts(mlflow_run, folder)
    client.set_terminated(mlflow_run, "FINISHED", end_time=content.ended)


def _content(run: Objects, results: Results) -> _Content:
    record = results.record
    counts = {"catalogued": record.catalogued, "explained": record.explained, "rejected": record.rejected}
    digests = dict(record.digests)
    return _Content(
        name=record.title,
        started=milliseconds(record.created),
        ended=milliseconds(record.finished),
        params=_params(record),
        metrics={key: value for key, value in _metrics(results) if math.isfinite(value)},
        tags={
            "lucency.version": record.lucency,
            "mlflow.note.content": _note(record),
            **{f"digest.{name}": value for name, value in digests.items()},
            **{f"version.{name}": value for name, value in record.versions},
        },
        archive=(digests["archive"][:_DIGEST_CHARACTERS], json.dumps(counts)),
        files={**_figures(results), "report.html": run.get("report.html")},
    )


def _note(record: Record) -> str:
    layer = "its answers alone" if record.model.layer is None else f"layer {record.model.layer}"
    return (
        f"{record.explained:,} of {record.catalogued:,} images explained with {record.model.source}, "
        f"{layer}. The report is among the artifacts."
    )


def _params(record: Record) -> dict[str, str]:
    """The configuration as resolved, without paths and addresses; what `auto` became instead of `auto`."""
    model = record.model
    return {
        **dict(record.settings),
        **{f"engine.{name}": value for name, value in record.engine},
        "model.layer": model.layer or "-",
        "model.head": model.head,
        "model.runtime": model.runtime,
        "model.classes": str(len(model.classes)),
        "model.features": str(model.features),
        "model.native": "x".join(map(str, model.native)),
        "model.input": "x".join(map(str, model.input)),
        "model.weights_sha256": model.weights_sha256,
        "shards.count": str(record.shards),
        "shards.images": str(record.shard_images),
    }


def _metrics(results: Results) -> Iterable[tuple[str, float]]:
    """`measure/method` over everything, with `.low` and `.high` where there is an interval, and `measure/method/class`
    for one class, without: intervals of every class would be two thirds of all that a server is sent. Of many classes
    those over everything alone."""
    record = results.record
    classes = _class_keys(record.model.classes)
    by_name = dict(zip(reversed(record.model.classes), reversed(classes), strict=True))
    for name in ("catalogued", "explained", "rejected"):
        yield f"images.{name}", float(getattr(record, name))
    for stage in record.stages:
        yield f"seconds/{stage.name}", stage.seconds
        yield f"images_per_second/{stage.name}", stage.rate
    for metric in results.metrics:
        key = f"{_key(metric.measure)}/{_key(metric.method)}"
        if metric.category == EVERY_CLASS:
            yield key, metric.value
            ends = {"low": metric.low, "high": metric.high}
            yield from ((f"{key}.{end}", value) for end, value in ends.items() if value is not None)
        elif len(classes) <= _CLASSES_SENT:
            yield f"{key}/{by_name[metric.category]}", metric.value
    for levels in results.levels:
        for name, limits in zip(classes, levels.limits, strict=True):
            yield f"level.low/{_key(levels.base)}/{name}", float(limits[0])
            yield f"level.high/{_key(levels.base)}/{name}", float(limits[1])


def _class_keys(classes: Sequence[str]) -> list[str]:
    """A key MLflow takes for each class. Names that are or would become equal get their number behind."""
    keys = [re.sub(r"[^\w -]", "_", name)[:120].strip() or "_" for name in classes]
    counts = Counter(keys)
    return [key if counts[key] == 1 else f"{key}.{index}" for index, key in enumerate(keys)]


def _key(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name.replace("++", "-plus-plus"))


def _figures(results: Results) -> dict[str, bytes]:
    shown = shown_classes(results)
    names = [results.record.model.classes[c] for c in shown]
    files = {}
    for levels in results.levels:
        figure = levels_figure(names, levels, shown, limit_names(results.record))
        files[f"figures/levels_{_key(levels.base)}.png"] = to_png(figure)
    for importance in results.importance:
        matrix = np.nan_to_num(importance.all[:, shown])
        figure = importance_figure(names, matrix[feature_order(matrix)])
        files[f"figures/importance_{_key(importance.base)}.png"] = to_png(figure)
    return files
