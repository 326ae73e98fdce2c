"""The trials of a study set beside each other: tables, findings and the page, from what their audits left."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from storage.objects import Objects
from storage.tables import read_table, write_table
from workflows.report.papers import write_tables
from workflows.state import read_state
from workflows.study.configuration import Study
from workflows.study.estimates import MEASURES, Estimates, Value, estimates
from workflows.study.findings import tell
from workflows.study.page import Page, build_page
from workflows.study.tables import Frame, Tables, class_tables, overall_tables
from workflows.study.trials import Trial

TRIALS = pa.schema(
    [
        ("task", pa.string()),
        ("model", pa.string()),
        ("loss", pa.string()),
        ("seed", pa.int64()),
        ("class", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),  # over patients; null: no interval
        ("high", pa.float64()),
        ("n", pa.int64()),
    ]
)
COMPARISON = pa.schema(
    [
        ("task", pa.string()),
        ("model", pa.string()),
        ("loss", pa.string()),
        ("class", pa.string()),
        ("measure", pa.string()),
        ("mean", pa.float64()),  # null: no seed has it
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("interval", pa.string()),  # over seeds | patients (of one seed); null: none
        ("seeds", pa.int64()),
        ("asked", pa.int64()),
        ("difference", pa.float64()),  # from bce, seed by seed
        ("diff_low", pa.float64()),
        ("diff_high", pa.float64()),
        ("pairs", pa.int64()),
    ]
)


def compare(
    study_run: Objects,
    trials: Sequence[Trial],
    configuration: Study,
    ended: Mapping[str, str | None],
    notes: Sequence[str],
) -> None:
    """Write trials.parquet, comparison.parquet, findings.json, tables/ and report.html of a study.

    ended: by a trial's name, why it failed, or None; a trial without an entry has not ended. notes: what a reader must
    know of the data. A trial that failed has no numbers here, whatever it left.
    """
    confidence = configuration.measures.confidence
    reasons = missing_trials(study_run, trials, ended)
    values = [value for trial in trials if trial not in reasons for value in _values(study_run, trial)]
    found = estimates(trials, values, confidence)
    frame = Frame(trials, confidence, reasons)
    write_table(study_run, "trials.parquet", trials_table(values))
    write_table(study_run, "comparison.parquet", comparison_table(found))
    told = tell(found)
    study_run.put("findings.json", json.dumps([asdict(item) for item in told.findings], indent=2).encode())
    tables = Tables(overall_tables(found, frame), class_tables(found, frame))
    write_tables(study_run, (*tables.overall, *tables.classes))
    page = Page(trials, reasons, notes, told, found, tables)
    study_run.put("report.html", build_page(study_run, configuration, page).encode())


def missing_trials(study_run: Objects, trials: Sequence[Trial], ended: Mapping[str, str | None]) -> dict[Trial, str]:
    """The trials that have no numbers, and why."""
    found = {}
    for trial in trials:
        reason = ended.get(trial.name, "it has not ended")
        state = None if reason else read_state(study_run, f"trials/{trial.name}/audit/run.json")
        if reason is None and (state is None or state["state"] != "done"):
            reason = "it was trained, and its audit has not finished"
        if reason is not None:
            found[trial] = reason
    return found


def _values(study_run: Objects, trial: Trial) -> Iterator[Value]:
    metrics = read_table(study_run, f"trials/{trial.name}/audit/metrics.parquet")
    metrics = metrics.filter(pc.is_in(metrics["measure"], pa.array(list(MEASURES))))
    for row in metrics.to_pylist():
        if row["method"] == MEASURES[row["measure"]]:
            yield Value(trial, row["class"], row["measure"], row["value"], row["low"], row["high"], row["n"])


def trials_table(values: Sequence[Value]) -> pa.Table:
    rows = [
        {**asdict(one.trial), "class": one.category, "measure": one.measure}
        | {"value": one.value, "low": one.low, "high": one.high, "n": one.n}
        for one in values
    ]
    return pa.Table.from_pylist(rows, TRIALS)


def comparison_table(found: Estimates) -> pa.Table:
    rows = []
    for key, one in found.items():
        row: dict[str, Any] = {
            "task": key.task,
            "model": key.model,
            "loss": key.loss,
            "class": key.category,
            "measure": key.measure,
        }
        row |= {"mean": one.mean, "low": one.low, "high": one.high, "interval": one.interval}
        row |= {"seeds": one.seeds, "asked": one.asked}
        if one.difference is not None:
            row |= {"difference": one.difference.mean, "diff_low": one.difference.low}
            row |= {"diff_high": one.difference.high, "pairs": one.difference.pairs}
        rows.append(row)
    return pa.Table.from_pylist(rows, COMPARISON)
