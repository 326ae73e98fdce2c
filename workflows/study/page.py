"""`report.html` of a study: one file that a radiologist and an engineer read, from disk, without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from storage.objects import Objects
from workflows.metrics import EVERY_CLASS
from workflows.report.environment import page_environment
from workflows.report.wording import number
from workflows.study.configuration import Study
from workflows.study.counts import counts_of
from workflows.study.curves import HEIGHT, WIDTH, histories, loss_charts, trial_rows, validation_chart
from workflows.study.estimates import AUROC, PRECISION, PROBABILITY, REFERENCE, Estimates, Key
from workflows.study.findings import LOSSES, QUESTIONS, Told
from workflows.study.pictures import strips
from workflows.study.recipe import recipe
from workflows.study.tables import Tables
from workflows.study.trials import Trial

_WARNING = "WARNING"
_BARS = {AUROC: "AUROC", PRECISION: "Average precision", PROBABILITY: "Mean predicted probability"}
_CURVES = {"auroc": "AUROC", "average precision": "average precision"}


@dataclass(frozen=True, slots=True)
class Page:
    """What the comparison has found. reasons: why a trial has no numbers."""

    trials: Sequence[Trial]
    reasons: Mapping[Trial, str]
    notes: Sequence[str]
    told: Told
    estimates: Estimates
    tables: Tables


@dataclass(frozen=True, slots=True)
class VerdictCell:
    """One comparison with BCE in words; kind: its CSS class."""

    word: str
    kind: str
    difference: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A loss's number on a scale from 0 to 1, in percent of it, None without one.

    whisker: start and width of its interval.
    """

    loss: str
    width: float | None
    whisker: tuple[float, float] | None
    value: str
    ends: str


def build_page(study_run: Objects, configuration: Study, page: Page) -> str:
    """The study's page. Paths, addresses and keys of the configuration are left out."""
    kinds = list(dict.fromkeys((trial.task, trial.model) for trial in page.trials))
    finished = [trial for trial in page.trials if trial not in page.reasons]
    found = histories(study_run, page.trials)
    charts = [
        (kind, [chart for name in _CURVES if (chart := validation_chart(found, *kind, f"validation.{name}"))],
         loss_charts(found, *kind))
        for kind in kinds
    ]  # fmt: skip
    pictures = strips(study_run, finished, configuration)
    losses = list(dict.fromkeys(trial.loss for trial in page.trials))
    return (
        page_environment("workflows.study", "workflows.report")
        .get_template("study.html")
        .render(
            title=configuration.report.title,
            lucency=version("lucency"),
            warnings=[note for note in page.notes if note.startswith(_WARNING)],
            notes=[note for note in page.notes if not note.startswith(_WARNING)],
            told=page.told,
            tables=page.tables,
            kinds=kinds,
            losses={loss: LOSSES[loss] for loss in losses},
            reference=LOSSES[REFERENCE] if REFERENCE in losses else None,
            verdicts=_verdicts(page.told, kinds, losses),
            bars=[(kind, _bars(page.estimates, *kind, losses)) for kind in kinds],
            pictures=pictures,
            counts=counts_of(study_run, configuration.classes),
            charts=[item for item in charts if item[1] or item[2]],
            size=(WIDTH, HEIGHT),
            curves=_CURVES,
            trials=trial_rows(study_run, page.trials, page.reasons),
            finished=len(finished),
            seeds=configuration.seeds,
            chance=f"{100 * (1 - configuration.measures.confidence):.3g}",
            level=f"{100 * configuration.measures.confidence:g} %",
            recipe=list(recipe(configuration)),
        )
    )


def _verdicts(
    told: Told, kinds: Sequence[tuple[str, str]], losses: Sequence[str]
) -> list[tuple[str, str, list[VerdictCell]]]:
    """A row a question and a loss, a cell a task and model."""
    by_key = {answer.key: answer for answer in told.answers}
    rows = []
    for measure, question in QUESTIONS.items():
        for loss in losses:
            if loss == REFERENCE:
                continue
            cells = []
            for task, model in kinds:
                answer = by_key[Key(task, model, loss, EVERY_CLASS, measure)]
                mean = None if answer.difference is None else answer.difference.mean
                shown = "" if mean is None else ("+" if mean > 0 else "") + number(mean)
                cells.append(VerdictCell(answer.verdict, answer.verdict.replace(" ", "-"), shown))
            rows.append((question, LOSSES[loss], cells))
    return rows


def _bars(estimates: Estimates, task: str, model: str, losses: Sequence[str]) -> list[tuple[str, list[Bar]]]:
    return [
        (name, [_bar(estimates, Key(task, model, loss, EVERY_CLASS, measure)) for loss in losses])
        for measure, name in _BARS.items()
    ]


def _bar(estimates: Estimates, key: Key) -> Bar:
    found = estimates.get(key)
    if found is None or found.mean is None:
        return Bar(LOSSES[key.loss], None, None, "\N{EN DASH}", "")
    if found.low is None or found.high is None:
        return Bar(LOSSES[key.loss], _percent(found.mean), None, number(found.mean), "")
    low, high = _percent(found.low), _percent(found.high)
    ends = f"{number(found.low)} to {number(found.high)}"
    return Bar(LOSSES[key.loss], _percent(found.mean), (low, high - low), number(found.mean), ends)


def _percent(share: float) -> float:
    return 100 * min(max(share, 0.0), 1.0)
