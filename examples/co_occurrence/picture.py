"""Canvases with their boxes beside what each method shows of them, as it is measured."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from examples.co_occurrence.chain import Shown
from examples.co_occurrence.measures import scaled

_EDGES = {"target": "#2ca02c", "context": "#ff7f0e", "other": "#7f7f7f"}


def write_picture(path: Path, shown: Sequence[Shown]) -> None:
    """A row for each canvas: it, then its maps, relu'd and min-maxed, with the boxes of target and context."""
    methods = list(shown[0].maps)
    figure = Figure(figsize=(1.55 * (1 + len(methods)), 1.8 * len(shown) + 0.35), layout="constrained")
    grid = figure.subplots(len(shown), 1 + len(methods), squeeze=False)
    for row, one in enumerate(shown):
        answers = "p = " + ", ".join(f"{probability:.2f}" for probability in one.probabilities)
        grid[row, 0].imshow(one.canvas, cmap="gray", vmin=0, vmax=1)
        grid[row, 0].set_title(f"{one.target}\n{answers}", fontsize=7)
        for axes, method in zip(grid[row, 1:], methods, strict=True):
            axes.imshow(one.canvas, cmap="gray", vmin=0, vmax=1)
            axes.imshow(scaled(one.maps[method]), cmap="inferno", vmin=0, vmax=1, alpha=0.65)
            axes.set_title(method, fontsize=8)
        for axes in grid[row]:
            _mark(axes, one)
    note = (
        "green: target, orange: context. Each map from its minimum (0 at least) to its maximum.\n"
        "p of the target: by the classifier, by the memory of m-cam."
    )
    figure.supxlabel(note, fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": ""})


def _mark(axes: Axes, one: Shown) -> None:
    axes.set_axis_off()
    for (x0, y0, x1, y1), part in zip(one.boxes.tolist(), _EDGES, strict=True):
        if part != "other":
            box = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=_EDGES[part], linewidth=1.2)
            axes.add_patch(box)
