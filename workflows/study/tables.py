"""The paper's tables of the study's own trials, over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workflows.metrics import EVERY_CLASS
from workflows.report.papers.source import one_line
from workflows.report.papers.table import Cell, Column, Row, Table
from workflows.study.estimates import (
    AUROC,
    DISJOINT,
    IOBB,
    IOR,
    POSITIVES,
    PRECISION,
    PROBABILITY,
    UNIQUE,
    Estimate,
    Estimates,
    Key,
    verdict,
)
from workflows.study.findings import LOSSES
from workflows.study.trials import Trial

_MARKS = {"more": "+", "less": "-"}
_LOSS = "Loss"
_NAMES = {
    IOBB: ("IoBB", 4),
    IOR: ("IoR", 4),
    DISJOINT: ("Disjoint", 1),
    UNIQUE: ("Unique", 1),
    AUROC: ("AUROC", 3),
    PRECISION: ("AP", 3),
    PROBABILITY: ("Probability", 3),
    POSITIVES: ("of positives", 3),
}
_CONCEPTS = (
    "A concept is a connected component of a feature's highest cells that meets a box. Disjoint: concepts an image; "
    "unique: features with a concept, an image."
)
_ALIGNMENT = (
    "IoBB: the part of the boxes that the map covers; IoR: the part of the map that lies in the boxes; the map scaled "
    "to [0, 1] by itself."
)
_PERFORMANCE = (
    "AUROC and average precision: means over classes that have both values. Probability: as predicted, of all labelled "
    "test images, and of those that have the class."
)


@dataclass(frozen=True, slots=True)
class Frame:
    """What the tables are laid out by, in the order of the configuration. reasons: why a trial has no numbers."""

    trials: Sequence[Trial]
    confidence: float
    reasons: Mapping[Trial, str]

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """(task, model), that tables are grouped by."""
        return list(dict.fromkeys((trial.task, trial.model) for trial in self.trials))

    @property
    def losses(self) -> list[str]:
        return list(dict.fromkeys(trial.loss for trial in self.trials))

    @property
    def level(self) -> str:
        return f"{100 * self.confidence:g} %"


@dataclass(frozen=True, slots=True)
class Tables:
    """overall: over all classes; classes: of each alone."""

    overall: tuple[Table, ...]
    classes: tuple[Table, ...]


def overall_tables(estimates: Estimates, frame: Frame) -> tuple[Table, ...]:
    """Tables 1 and 2 of the paper, and figure 2 in numbers."""
    return tuple(
        _overall(estimates, frame, measures, Table(name, title, caption, _LOSS))
        for name, title, caption, measures in (
            ("study-alignment", "Alignment of maps with boxes (the paper's table 1)", _ALIGNMENT, (IOBB, IOR)),
            ("study-concepts", "Concepts in the boxes (the paper's table 2)", _CONCEPTS, (DISJOINT, UNIQUE)),
            (
                "study-performance",
                "Performance and predicted probability (the paper's figure 2)",
                _PERFORMANCE,
                (AUROC, PRECISION, PROBABILITY, POSITIVES),
            ),
        )
    )


def class_tables(estimates: Estimates, frame: Frame) -> tuple[Table, ...]:
    """Every measure of every class, a table for each task and model that knows two classes or more."""
    tables = []
    for task, model in frame.kinds:
        named = dict.fromkeys(key.category for key in estimates if (key.task, key.model) == (task, model))
        classes = [name for name in named if name != EVERY_CLASS]
        if len(classes) < 2:
            continue
        columns = [(measure, loss) for measure in _NAMES for loss in frame.losses]
        rows = [
            Row(one_line(name), tuple(_cell(estimates, Key(task, model, loss, name, measure), frame.reasons)
                                      for measure, loss in columns))
            for name in classes
        ]  # fmt: skip
        tables.append(
            Table(
                f"study-classes-{task}-{model}",
                f"Class by class: {task}, {model}",
                "The measures of the tables above, of each class alone.",
                "Class",
                tuple(Column(LOSSES[loss], _full(measure)) for measure, loss in columns),
                tuple(rows),
                _notes(frame, [cell for row in rows for cell in row.cells]),
                "No trial has a number.",
            )
        )
    return tuple(tables)


def _full(measure: str) -> str:
    return "Probability of positives" if measure == POSITIVES else _NAMES[measure][0]


def _overall(estimates: Estimates, frame: Frame, measures: Sequence[str], table: Table) -> Table:
    columns = [(task, model, measure) for task, model in frame.kinds for measure in measures]
    rows = [
        Row(
            LOSSES[loss],
            tuple(
                _cell(estimates, Key(task, model, loss, EVERY_CLASS, measure), frame.reasons)
                for task, model, measure in columns
            ),
        )
        for loss in frame.losses
    ]
    return Table(
        table.name,
        table.title,
        table.caption,
        table.stub,
        tuple(Column(_NAMES[measure][0], f"{task}, {model}") for task, model, measure in columns),
        tuple(rows),
        _notes(frame, [cell for row in rows for cell in row.cells]),
        "No trial has a number.",
    )


def _cell(estimates: Estimates, key: Key, reasons: Mapping[Trial, str]) -> Cell:
    """n is the number of seeds. A dash says why each of its trials has no number."""
    found = estimates.get(key)
    if found is None or found.mean is None:
        own = [reason for trial, reason in reasons.items()
               if (trial.task, trial.model, trial.loss) == (key.task, key.model, key.loss)]  # fmt: skip
        return Cell(why=one_line("; ".join(dict.fromkeys(own))) or "not measured by the audits: see their reports")
    decimals = _NAMES[key.measure][1]
    return Cell(found.mean, found.low, found.high, found.seeds, _mark(found), decimals=decimals)


def _mark(found: Estimate) -> str:
    return "p" if found.interval == "patients" else _MARKS.get(verdict(found.difference), "")


def _notes(frame: Frame, cells: Iterable[Cell]) -> tuple[str, ...]:
    marks = {cell.mark for cell in cells}
    notes = ["n: seeds, of which the number is the mean."]
    if frame.reasons:
        notes.append(f"{len(frame.reasons)} of {len(frame.trials)} trials have no numbers and stand in no mean.")
    if marks - {"p"} or not marks:
        notes.append(f"Intervals: {frame.level}, Student's t over seeds.")
    if "p" in marks:
        notes.append(
            f"p: one seed; the interval is its own, {frame.level} by bootstrap over patients, and does not say what "
            "training again would change."
        )
    if marks & {"+", "-"}:
        notes.append(f"+ and -: more and less than BCE, where the {frame.level} interval of the difference, "
                     "seed by seed, leaves out 0.")  # fmt: skip
    return tuple(notes)
