"""The tables of GLAS: the pointing game by search points and by methods, and how RGLAS grows over what it looks for."""

from collections.abc import Sequence

from tasks.measures.names import IOU_THRESHOLDS
from workflows.report.papers.source import Source, to_fill
from workflows.report.papers.table import Cell, Column, Row, Table, with_best

_POINTING, _SMALL = "pointing game", "pointing game small"
_HIT = (
    "A hit: the centre of the largest blob of the map above the level of measures.level lies in a box of the "
    "explained class. PT is the share of hits; higher is better."
)
_TIME = "Seconds and forwards are those of one map alone on the run's device, and compare on the same device only."
_UNTIMED = "not timed: the checks of measures.sanity time each method"


def search_points(runs: Sequence[Source]) -> Table:
    """Table 1: a column a run, by its search points."""
    chosen = [run for run in runs if "glas" in run.variants and run.results.record.judging.points]
    chosen.sort(key=lambda run: run.results.record.judging.points or 0)
    sides = [f"{run.results.record.judging.points} x {run.results.record.judging.points}" for run in chosen]
    names = [side if sides.count(side) == 1 else f"{side} {run.name}" for side, run in zip(sides, chosen, strict=True)]
    return Table(
        "glas-1",
        "GLAS, table 1: pointing game by the number of search points",
        f"{_HIT} {_TIME}",
        "Search points",
        tuple(map(Column, names)),
        (
            Row("PT", tuple(run.cell("glas", _POINTING) for run in chosen)),
            Row("Time (s)", tuple(_seconds(run, "glas") for run in chosen)),
            Row("Forwards", tuple(_forwards(run, "glas") for run in chosen)),
        )
        if chosen
        else (),
        missing=to_fill(
            "glas in explain.methods, boxes (archive.boxes), pointing in measures.include, and a run for each "
            "explain.glas.points",
            runs,
            _POINTING,
        ),
    )


def methods(runs: Sequence[Source]) -> Table:
    """Table 2: a row a method."""
    asked = [
        (run, method)
        for run in runs
        for method in dict.fromkeys([*run.methods(_POINTING), *(name for name in run.results.record.costs)])
    ]
    columns = [
        with_best([run.cell(method, _POINTING) for run, method in asked], "higher"),
        with_best([run.cell(method, _SMALL) for run, method in asked], "higher"),
        [_seconds(run, method) for run, method in asked],
        [_forwards(run, method) for run, method in asked],
    ]
    names = [method if len(runs) == 1 else f"{run.name}: {method}" for run, method in asked]
    return Table(
        "glas-2",
        "GLAS, table 2: pointing game and cost of the methods",
        f"{_HIT} PT-small: of cases whose boxes cover less of the image than measures.small. {_TIME}",
        "Method",
        tuple(map(Column, ("PT", "PT-small", "Time (s)", "Forwards"))),
        tuple(Row(name, cells) for name, cells in zip(names, zip(*columns, strict=True), strict=True)),
        missing=to_fill("boxes (archive.boxes) and pointing in measures.include", runs, _POINTING),
    )


def iterations(runs: Sequence[Source]) -> Table:
    """Table 3: what the map of RGLAS covers after each iteration."""
    measures = [f"iou {share:g}" for share in IOU_THRESHOLDS]
    rows = []
    for run in runs:
        steps = [name for name in run.methods(measures[0]) if name.startswith("rglas[")]
        steps.sort(key=_iteration)
        for step in (*steps, *(["rglas"] if "rglas" in run.variants else [])):
            label = "A" if step == "rglas" else str(_iteration(step))
            name = label if len(runs) == 1 else f"{run.name}: {label}"
            rows.append(Row(name, tuple(run.cell(step, measure) for measure in measures)))
    return Table(
        "glas-3",
        "GLAS, table 3: intersection over union of RGLAS by iteration",
        "Mean over cases of the intersection over union of the boxes of the explained class with the map above a "
        "threshold, the map scaled to [0, 1] by itself. A: the final map. Higher is better.",
        "Iteration",
        tuple(Column(f"{share:g}", "Threshold") for share in IOU_THRESHOLDS),
        tuple(rows),
        missing=to_fill(
            "rglas in explain.methods, boxes (archive.boxes) and iou in measures.include", runs, measures[0]
        ),
    )


def _iteration(method: str) -> int:
    """Of `rglas[2]` the 2."""
    return int(method.removeprefix("rglas[").removesuffix("]"))


def _seconds(run: Source, method: str) -> Cell:
    cost = run.results.record.costs.get(method)
    return Cell(why=_UNTIMED) if cost is None else Cell(cost.seconds)


def _forwards(run: Source, method: str) -> Cell:
    cost = run.results.record.costs.get(method)
    return Cell(why=_UNTIMED) if cost is None else Cell(cost.forwards, decimals=0)
