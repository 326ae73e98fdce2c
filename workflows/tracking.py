"""One MLflow run for each audit: parameters, numbers, figures, the report. Nothing that may name a patient.

MLflow may be down. Then the audit is complete all the same: a warning says so, the ledger remembers it, and
logging again later fills the same MLflow run.
"""

import hashlib
import json
import logging
import math
import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from storage.objects import Objects
from workflows.configuration import Configuration
from workflows.report.figures import importance_figure, levels_figure, to_png
from workflows.report.record import Record
from workflows.report.results import EVERY_CLASS, Results, read_results
from workflows.report.tables import feature_order, shown_classes
from workflows.report.wording import limit_names
from workflows.state import state_folder

_ENTRY = ".ledger/mlflow.json"
_DIGEST_CHARACTERS = 36  # what MLflow keeps of a dataset's digest
# MLflow's own patience with a dead server is minutes; it prints addresses to stdout, where --json belongs.
_BEHAVIOUR = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_LOG = logging.getLogger("lucency.mlflow")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the run remembers of its MLflow run. store: digest of the tracking address, which may hold a password."""

    logged: bool
    run: str | None
    store: str

    def to_json(self) -> bytes:
        return json.dumps({"logged": self.logged, "run": self.run, "store": self.store}).encode()


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
    store = hashlib.sha256((tracking.uri or "").encode()).hexdigest()[:16]
    entry = _read_entry(run, store)
    try:
        with _behaved_mlflow():
            from mlflow import MlflowClient  # seconds to import, and telemetry has to be off before

            client = MlflowClient(tracking_uri=tracking.uri or _local_store())
            mlflow_run = _open_run(client, tracking.experiment, tracking.uri is None, entry, content)
            run.put(_ENTRY, _Entry(False, mlflow_run, store).to_json())
            _send(client, mlflow_run, content)
    except Exception as error:  # servers, databases and object stores fail in classes of their own
        entry = _read_entry(run, store)
        run.put(_ENTRY, _Entry(False, entry.run, store).to_json())
        _LOG.warning(
            "MLflow did not take the run (%s). Nothing is lost: `lucency report %s --log` logs it when MLflow is back.",
            _kind(error),
            run.location,
        )
        return None
    run.put(_ENTRY, _Entry(True, mlflow_run, store).to_json())
    return mlflow_run


def _read_entry(run: Objects, store: str) -> _Entry:
    """The entry of this store; another store's run is none of ours."""
    try:
        tree = json.loads(run.get(_ENTRY))
    except FileNotFoundError:
        return _Entry(False, None, store)
    return _Entry(tree["logged"], tree["run"], store) if tree["store"] == store else _Entry(False, None, store)


def _kind(error: Exception) -> str:
    """The class of a failure with MLflow's code or the missing module. Its text may hold a password: it stays out."""
    code = getattr(error, "error_code", None) or getattr(error, "name", None)
    return f"{type(error).__name__} {code}" if code else type(error).__name__


@contextmanager
def _behaved_mlflow() -> Iterator[None]:
    """MLflow with telemetry off for good, and short patience unless the environment asks for more."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    added = {name: value for name, value in _BEHAVIOUR.items() if name not in os.environ}
    os.environ.update(added)
    alembic = logging.getLogger("alembic")
    level = alembic.level
    alembic.setLevel(logging.WARNING)  # announces each step of making the database
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)  # of MLflow's libraries, to MLflow's authors
            yield
    finally:
        alembic.setLevel(level)
        for name in added:
            os.environ.pop(name, None)


def _local_store() -> str:
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _open_run(client: Any, experiment: str, local: bool, entry: _Entry, content: _Content) -> str:
    """The MLflow run of this audit: the one logged to before, where it still stands, else a new one."""
    from mlflow.exceptions import MlflowException

    if entry.run is not None:
        try:
            if client.get_run(entry.run).info.lifecycle_stage == "active":
                return entry.run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    experiment_id = _experiment(client, experiment, (state_folder() / "mlartifacts").as_uri() if local else None)
    created = client.create_run(experiment_id, start_time=content.started, run_name=content.name)
    return str(created.info.run_id)


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:  # another audit may have created it in this moment
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


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
        started=_milliseconds(record.created),
        ended=_milliseconds(record.finished),
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


def _milliseconds(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


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
    """`measure/method` over everything, `measure/method/class` for one class."""
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
        yield key if metric.category == EVERY_CLASS else f"{key}/{by_name[metric.category]}", metric.value
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
