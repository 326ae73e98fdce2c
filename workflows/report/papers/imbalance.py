"""The tables of the study of imbalance: runs of classifiers that were trained with different losses."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from workflows.report.papers.source import Source, one_line, to_fill
from workflows.report.papers.table import Cell, Column, Row, Table

_METHOD = "grad-cam"


def alignment(runs: Sequence[Source]) -> Table:
    """Table 1: how much of the boxes the maps cover, and how much of the maps lies in the boxes."""

    def method(run: Source) -> str:
        measured = run.methods("iobb")
        return _METHOD if _METHOD in measured or not measured else measured[0]

    return _losses(
        runs,
        lambda run: f"{_settings(run)}, {method(run)}",
        {
            "IoBB": lambda run: run.cell(method(run), "iobb", 4),
            "IoR": lambda run: run.cell(method(run), "ior", 4),
        },
        Table(
            "imbalance-1",
            "Imbalance, table 1: alignment of maps with boxes",
            "S is the map scaled to [0, 1] by itself, B the union of the boxes of the explained class. IoBB: the part "
            "of B that S covers; IoR: the part of S that lies in B. Mean over cases with a box; both: higher is "
            "better. Runs of the same title stand in one row where task, classifier or method differ.",
            "Loss",
            missing=to_fill("boxes (archive.boxes) and alignment in measures.include", runs, "iobb"),
        ),
    )


def concepts(runs: Sequence[Source]) -> Table:
    """Table 2: how many concepts the target layer's features have in the boxes."""
    return _losses(
        runs,
        _settings,
        {
            "Disjoint": lambda run: run.cell("model", "concepts.disjoint", 1),
            "Unique": lambda run: run.cell("model", "concepts.unique", 1),
        },
        Table(
            "imbalance-2",
            "Imbalance, table 2: concepts in the boxes",
            "A concept is a connected component of a feature's highest cells (the part measures.concept of the "
            "archive's) that meets a box. Disjoint: concepts an image; unique: features with a concept, an image. Mean "
            "over images with boxes. More concepts: the layer has more detectors of what the boxes mark.",
            "Loss",
            missing=to_fill(
                "boxes (archive.boxes), a model that can be looked into, and concepts in measures.include",
                runs,
                "concepts.disjoint",
            ),
        ),
    )


def _settings(run: Source) -> str:
    """What stands above the columns: task, classifier and layer."""
    model = run.results.record.model
    return one_line(f"{model.task}, {model.source}" + ("" if model.layer is None else f" {model.layer}"))


def _losses(
    runs: Sequence[Source],
    group: Callable[[Source], str],
    columns: dict[str, Callable[[Source], Cell]],
    table: Table,
) -> Table:
    """A row a loss and a group of columns for each kind of classifier."""
    kinds = [group(run) for run in runs]
    alike = Counter((run.title, kind) for run, kind in zip(runs, kinds, strict=True))
    rows: dict[str, dict[str, Source]] = {}
    for run, kind in zip(runs, kinds, strict=True):
        rows.setdefault(run.title if alike[run.title, kind] == 1 else run.name, {})[kind] = run
    kinds = list(dict.fromkeys(kinds))
    absent = Cell(why="no such run was given")
    return replace(
        table,
        columns=tuple(Column(name, kind) for kind in kinds for name in columns),
        rows=tuple(
            Row(name, tuple(ask(own[kind]) if kind in own else absent for kind in kinds for ask in columns.values()))
            for name, own in rows.items()
        ),
    )
