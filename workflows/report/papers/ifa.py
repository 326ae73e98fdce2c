"""The tables of integrated feature analysis: consistency, features that suffice, maps from those features alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tasks.cams.names import MethodName
from workflows.report.papers.source import CONSISTENCY, FEW, Source, to_fill
from workflows.report.papers.table import Cell, Column, Row, Table, measured

_PAPER = "Integrated feature analysis"
_COEFFICIENT = (
    "The number is the correlation of a map's sum with the logit that the map explains: Pearson's (p) where both are "
    f"bivariate normal, else Spearman's (s). Nearer to 1 is better. 'Within a class' is the median over the classes "
    f"with {FEW} cases or more; the other rows mix the classes."
)
_SELF_CHECK = (
    "A self-check, not evidence: behind global average pooling and one linear layer the sum of a raw map is the logit "
    "minus a constant, by arithmetic. A correlation of 1 there proves that the computation is right, and says nothing "
    "of the method or the classifier (docs/explanation/numbers.md)."
)
_MEAN_DIFFERENCE = (
    "the mean of the differences of the coefficients, times 100: the paper's printed column follows from its "
    "coefficients so, within rounding (but for MNIST in table III). No interval is taken of it."
)
_ACCURACIES = {
    "All features": "accuracy",
    "Principal": "accuracy.principal",
    "Non-principal": "accuracy.non-principal",
    "Principal, union": "accuracy.principal.union",
    "Non-principal, union": "accuracy.non-principal.union",
}
_CHANGES = {"Increase": "increase in confidence", "Drop": "average drop"}


def consistency(runs: Sequence[Source]) -> Table:
    """Table I: each method scaled image by image, and on the common scale."""
    bases = [base for base in _bases(runs) if any(f"{base}.tanh" in run.methods(CONSISTENCY) for run in runs)]
    return _coefficients(
        runs,
        [(base, f"{base}.individual", f"S-{base}", f"{base}.tanh") for base in bases],
        "Ave.Inc.(%)",
        Table(
            "ifa-1",
            f"{_PAPER}, table I: consistency of maps with logits, scaled image by image and on the common scale (S-)",
            f"{_COEFFICIENT} Ave.Inc. is {_MEAN_DIFFERENCE}",
            "Dataset",
            notes=(_SELF_CHECK,),
            missing="Needs a method with a common scale in explain.methods, such as s-grad-cam.",
        ),
        lambda former, latter: latter - former,
    )


def selected_consistency(runs: Sequence[Source]) -> Table:
    """Table III: maps on the common scale from all features, and from the principal ones."""
    return _coefficients(
        runs,
        [(f"S-{base}", f"{base}.tanh", f"FS-S-{base}", f"fs-{base}.tanh") for base in _selected(runs)],
        "Ave.Dec.(%)",
        Table(
            "ifa-3",
            f"{_PAPER}, table III: consistency with all features (S-) and with the principal ones (FS-S-)",
            f"{_COEFFICIENT} Ave.Dec. is {_MEAN_DIFFERENCE} A negative one: principal features alone are more "
            "consistent.",
            "Dataset",
            notes=(_SELF_CHECK,),
            missing="Needs methods with all and with their principal features in explain.methods, such as s-grad-cam "
            "and fs-s-grad-cam.",
        ),
        lambda former, latter: former - latter,
    )


def _coefficients(
    runs: Sequence[Source],
    pairs: Sequence[tuple[str, str, str, str]],
    last: str,
    table: Table,
    difference: Callable[[float, float], float],
) -> Table:
    """Pairs of columns (heading, method, heading, method) and the mean of their differences behind them."""
    rows = []
    for run in runs:
        for name, cell in ((run.name, _marked(run)), (f"{run.name}, within a class", run.within)):
            cells = [(cell(former), cell(latter)) for _, former, _, latter in pairs]
            found = [
                difference(former.value, latter.value)
                for former, latter in cells
                if former.value is not None and latter.value is not None
            ]
            rows.append(Row(name, (*(item for pair in cells for item in pair), _mean([100 * item for item in found]))))
    headings = [heading for former, _, latter, _ in pairs for heading in (former, latter)]
    return replace(table, columns=tuple(map(Column, [*headings, last])), rows=tuple(rows))


def _marked(run: Source) -> Callable[[str], Cell]:
    """The coefficient over all classes, with a letter that says whose it is."""

    def cell(method: str) -> Cell:
        found, normal = run.cell(method, CONSISTENCY), run.cell(method, f"{CONSISTENCY}.normal")
        return replace(found, mark="" if None in (found.value, normal.value) else "p" if normal.value else "s")

    return cell


def accuracy(runs: Sequence[Source]) -> Table:
    """Table II: what of the accuracy the principal features keep, and what the others have."""
    rows = []
    for run in runs if any(run.methods("accuracy.principal") for run in runs) else ():
        masked = run.methods("accuracy.principal") or ["grad-cam"]
        for base in masked:
            name = run.name if len(masked) == 1 else f"{run.name}: {base}"
            cells = (run.cell("model" if measure == "accuracy" else base, measure) for measure in _ACCURACIES.values())
            rows.append(Row(name, tuple(cells)))
    shares = {setting[1] for run in runs for setting in run.results.record.settings if setting[0] == _SHARE}
    return Table(
        "ifa-2",
        f"{_PAPER}, table II: accuracy with all, principal and non-principal features",
        "The share of right answers over the labelled images (of a multi-label model: of decisions). Features outside "
        f"the mask are zero at the target layer. Principal: the upper part ({_SHARE}: {', '.join(sorted(shares))}) of "
        "each class by its importance, and its logit from these alone; union: one mask for all logits, of what is "
        "principal for any class. Higher is better for principal features, and lower for the others.",
        "Dataset",
        tuple(map(Column, _ACCURACIES)),
        tuple(rows),
        missing=to_fill(
            "labels (archive.labels), a method that weighs features in explain.methods (such as grad-cam), and "
            "features in measures.include",
            runs,
            "accuracy.principal",
        ),
    )


_SHARE = "explain.features.share"


def selected_drop(runs: Sequence[Source]) -> Table:
    """Table IV: what becomes of average increase and drop when maps are drawn from the principal features."""
    bases = _selected(runs)
    rows = []
    for run in runs:
        for word, measure in _CHANGES.items():
            cells = [_change(run.cell(base, measure), run.cell(f"fs-{base}", measure)) for base in bases]
            average = _mean([cell.value for cell in cells if cell.value is not None])
            rows.append(Row(f"{word} ({run.name})", (*cells, average)))
    return Table(
        "ifa-4",
        f"{_PAPER}, table IV: change of average increase and average drop from maps of all features to maps of the "
        "principal ones",
        "In percent of the value with all features: 100 (FS - all) / all. Of increase, higher is better; of drop, "
        "lower. Average: over the methods. No interval is taken of a change.",
        "Change of",
        tuple(map(Column, [*bases, "Average"])),
        tuple(rows),
        missing=to_fill(
            "a method with all and with its principal features in explain.methods (such as grad-cam and fs-grad-cam), "
            "and drop in measures.include",
            runs,
            "average drop",
        ),
    )


def _change(former: Cell, latter: Cell) -> Cell:
    if former.value is None or latter.value is None:
        return replace(former if former.value is None else latter, decimals=2)
    if former.value == 0:
        return Cell(why="with all features it is 0, of which nothing is a percentage", decimals=2)
    count = former.n if former.n == latter.n else None
    return Cell(100 * (latter.value - former.value) / former.value, n=count, decimals=2)


def _mean(values: Sequence[float]) -> Cell:
    """Of what was found of a row."""
    if not values:
        return Cell(why="nothing to average in this row", decimals=1)
    return measured(float(np.mean(values)), decimals=1)


def _bases(runs: Sequence[Source]) -> list[str]:
    """All base methods of the runs, in the order they were asked for."""
    names = (name for run in runs for name in run.results.record.judging.methods)
    return list(dict.fromkeys(MethodName.parse(name).base for name in names))


def _selected(runs: Sequence[Source]) -> list[str]:
    """Those of them that are drawn from their principal features."""
    chosen = {MethodName.parse(name).base for run in runs for name in run.variants if name.startswith("fs-")}
    return [base for base in _bases(runs) if base in chosen]
