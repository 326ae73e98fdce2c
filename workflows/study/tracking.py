"""A study in MLflow: one run with its recipe, its means over seeds, its page and its tables."""

import logging
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from storage.objects import Objects
from storage.tables import read_table
from workflows.metrics import EVERY_CLASS
from workflows.mlflow_store import connected, kind_of, milliseconds, open_run, read_entry, write_entry
from workflows.state import now
from workflows.study.configuration import Study
from workflows.study.recipe import recipe

_LOG = logging.getLogger("lucency.mlflow")
_VALUE_CHARACTERS = 500  # what older servers keep of a parameter


def log_study(study_run: Objects, configuration: Study, started: str | None = None) -> str | None:
    """Log what the comparison wrote and return MLflow's run id, or None, with a warning, when MLflow did not take it.

    Calling it again updates the same MLflow run. started: an ISO time.
    """
    tracking = configuration.mlflow
    entry = read_entry(study_run, tracking)
    files = {key: study_run.get(key) for key in ("report.html", "findings.json", *study_run.list("tables"))}
    metrics = dict(_metrics(read_table(study_run, "comparison.parquet").to_pylist()))
    moment = milliseconds(now())
    begun = milliseconds(started) if started else moment
    try:
        with connected(tracking) as client:
            run = open_run(client, tracking, entry.run, name=configuration.report.title, started=begun)
            entry = replace(entry, logged=False, run=run)
            write_entry(study_run, entry)
            _send(client, run, metrics, dict(recipe(configuration)), moment)
            _send_files(client, run, files)
            client.set_terminated(run, "FINISHED", end_time=moment)
    except Exception as error:  # servers, databases and object stores fail in classes of their own
        write_entry(study_run, replace(entry, logged=False))
        _LOG.warning("MLflow did not take the study (%s). Nothing is lost: the same command logs it.", kind_of(error))
        return None
    write_entry(study_run, replace(entry, logged=True))
    return run


def _send(client: Any, run: str, metrics: Mapping[str, float], params: Mapping[str, str], moment: int) -> None:
    from mlflow.entities import Metric, Param, RunTag

    known = client.get_run(run).data.params  # a parameter may be written once
    new = [Param(key, value[:_VALUE_CHARACTERS]) for key, value in params.items() if key not in known]
    note = "An imbalance study: means over seeds. The page and the tables are among the artifacts."
    sent = [Metric(key, value, moment, 0) for key, value in metrics.items()]
    client.log_batch(run, sent, new, [RunTag("mlflow.note.content", note), RunTag("lucency.kind", "study")])


def _send_files(client: Any, run: str, files: Mapping[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        client.log_artifacts(run, folder)


def _metrics(rows: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, float]]:
    """`measure/task/model/loss` over all classes, and its difference from BCE; those of classes are in the tables."""
    for row in rows:
        if row["class"] != EVERY_CLASS or row["mean"] is None:
            continue
        key = "/".join(_key(row[name]) for name in ("measure", "task", "model", "loss"))
        over_seeds = row["interval"] == "seeds"
        ends = {"low": row["low"], "high": row["high"]} if over_seeds else {}
        ends |= {"difference": row["difference"], "diff_low": row["diff_low"], "diff_high": row["diff_high"]}
        yield key, row["mean"]
        yield from ((f"{key}.{name}", value) for name, value in ends.items() if value is not None)


def _key(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)
