"""What each trial cost and how its training went: from trial.json, history.parquet and the audit's run.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite
from urllib.parse import quote

from storage.objects import Objects
from storage.tables import read_table
from workflows.report.wording import number
from workflows.state import read_state
from workflows.study.findings import LOSSES
from workflows.study.trials import Trial

WIDTH, HEIGHT = 520, 180


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial in words; report: where its own lies, from the study's page; reason: why it has no numbers."""

    trial: Trial
    loss: str
    epochs: str
    best: str
    trained: str
    audited: str
    report: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Line:
    """One trial's figure over its epochs as points of a polyline. kind: its CSS class."""

    kind: str
    points: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines on one scale. low, high: at the bottom and at the top; epochs: at the right end."""

    title: str
    low: str
    high: str
    epochs: int
    lines: tuple[Line, ...]


History = Mapping[str, Sequence[float | None]]


def trial_rows(study_run: Objects, trials: Sequence[Trial], reasons: Mapping[Trial, str]) -> tuple[TrialRow, ...]:
    return tuple(_row(study_run, trial, reasons.get(trial, "")) for trial in trials)


def _row(study_run: Objects, trial: Trial, reason: str) -> TrialRow:
    told = read_state(study_run, f"trials/{trial.name}/trial.json") or {}
    stages = (read_state(study_run, f"trials/{trial.name}/audit/run.json") or {}).get("stages", {})
    page = f"trials/{trial.name}/audit/report.html"
    return TrialRow(
        trial=trial,
        loss=LOSSES[trial.loss],
        epochs=str(told.get("epochs", "")),
        best=str(told["best_epoch"] + 1) if "best_epoch" in told else "",
        trained=_duration(_between(told["started"], told["ended"])) if "ended" in told else "",
        audited=_duration(sum(stage["seconds"] for stage in stages.values())) if stages else "",
        report=quote(page) if not reason and study_run.exists(page) else None,
        reason=reason,
    )


def _between(started: str, ended: str) -> float:
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def histories(study_run: Objects, trials: Sequence[Trial]) -> dict[Trial, History]:
    """Of the trials that were trained to their end, whether or not they were audited."""
    found: dict[Trial, History] = {}
    for trial in trials:
        try:
            table = read_table(study_run, f"trials/{trial.name}/history.parquet")
        except FileNotFoundError:
            continue
        found[trial] = table.to_pydict()
    return found


def validation_chart(found: Mapping[Trial, History], task: str, model: str, figure: str) -> Chart | None:
    """A figure of all trials of a task and model, a kind of line a loss; None where none has it."""
    lines = [
        (trial.loss, history[figure])
        for trial, history in found.items()
        if (trial.task, trial.model) == (task, model) and figure in history
    ]
    return _chart(figure, lines)


def loss_charts(found: Mapping[Trial, History], task: str, model: str) -> tuple[Chart, ...]:
    """What was learned from and what was held out, a chart a loss: losses of different formulas have no common
    scale."""
    own = {trial: history for trial, history in found.items() if (trial.task, trial.model) == (task, model)}
    charts = []
    for loss in dict.fromkeys(trial.loss for trial in own):
        lines = [
            (kind, history[figure])
            for trial, history in own.items()
            if trial.loss == loss
            for kind, figure in (("learned", "train.loss"), ("held", "validation.loss"))
            if figure in history
        ]
        chart = _chart(LOSSES[loss], lines)
        charts += [] if chart is None else [chart]
    return tuple(charts)


def _chart(title: str, lines: Sequence[tuple[str, Sequence[float | None]]]) -> Chart | None:
    known = [value for _, line in lines for value in line if value is not None and isfinite(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    epochs = max(len(line) for _, line in lines)
    drawn = []
    for kind, line in lines:
        places = [
            f"{WIDTH * epoch / max(1, epochs - 1):.1f},{HEIGHT * (high - value) / ((high - low) or 1.0):.1f}"
            for epoch, value in enumerate(line)
            if value is not None and isfinite(value)
        ]
        drawn.append(Line(kind, " ".join(places)))
    return Chart(title, number(low), number(high), epochs, tuple(drawn))
