"""The tables of M-CAM: four measures of the maps alone, methods beside each other."""

from collections.abc import Sequence

from tasks.measures.names import MEASURES
from workflows.report.papers.source import Source, to_fill
from workflows.report.papers.table import Column, Row, Table, with_best

_MEASURES = {measure.name: measure for measure in MEASURES}
_BOTH = (
    "The map, scaled to [0, 1] by itself, dims the image towards its dark level where it is low. Y is the probability "
    "of the explained class for the whole image, O that for what is left. "
)
_CAPTIONS = {
    "average drop": ("Average Drop, %", _BOTH + "Mean over cases of max(Y - O, 0) / Y, in percent. Lower is better."),
    "increase in confidence": (
        "Increase in Confidence, %",
        _BOTH + "The share of cases with O above Y, in percent. Higher is better.",
    ),
    "infidelity": (
        "infidelity",
        "Mean over cases of the squared difference between the change of the logit under small noise and what the map "
        "says of that change, after the best scaling of the map. Lower is better.",
    ),
    "max-sensitivity": (
        "sensitivity (max)",
        "Mean over cases of the largest relative change of the map under small uniform noise. Lower is better.",
    ),
}
_DECIMALS = {"average drop": 2, "increase in confidence": 2}


def judged(runs: Sequence[Source]) -> tuple[Table, ...]:
    """Tables 1 to 4: datasets by methods, the best of each row marked."""
    return tuple(_table(place, measure, runs) for place, measure in enumerate(_CAPTIONS, 1))


def _table(place: int, name: str, runs: Sequence[Source]) -> Table:
    measure, (title, caption) = _MEASURES[name], _CAPTIONS[name]
    methods = list(dict.fromkeys(method for run in runs for method in run.methods(name)))
    cells = [[run.cell(method, name, _DECIMALS.get(name, 4)) for method in methods] for run in runs]
    return Table(
        f"m-cam-{place}",
        f"M-CAM, table {place}: {title}",
        caption,
        "Dataset",
        tuple(map(Column, methods)),
        tuple(Row(run.name, with_best(row, measure.better)) for run, row in zip(runs, cells, strict=True)),
        missing=to_fill(f"{measure.group} in measures.include", runs, name),
    )
