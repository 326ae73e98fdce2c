"""The levels and the importance matrix as figures, for places that take pictures: MLflow's artifacts."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from workflows.report.results import Array, Levels
from workflows.report.tables import colour_bound

_INK = "#17202b"
_QUIET = "#55606d"
_BAR = "#0a7f8a"


def levels_figure(names: Sequence[str], levels: Levels, shown: Sequence[int], limit_names: tuple[str, str]) -> Figure:
    """For each class a line from P1 to P99, a bar from the low to the high limit and a mark at the median."""
    limits, quantiles = levels.limits[shown], levels.quantiles[shown]
    figure, axes = _canvas(len(names))
    places = np.arange(len(names))
    axes.hlines(places, quantiles[:, 0], quantiles[:, 2], color=_BAR, linewidth=1.2)
    axes.barh(places, limits[:, 1] - limits[:, 0], left=limits[:, 0], color=_BAR, height=0.55)
    axes.vlines(quantiles[:, 1], places - 0.27, places + 0.27, color="white", linewidth=2)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel(f"level of a map cell. Bar: {limit_names[0]} to {limit_names[1]}, line: P1 to P99")
    return figure


def importance_figure(names: Sequence[str], matrix: Array) -> Figure:
    """Classes by features, red for, blue against. matrix [F,C], features in the order they are drawn."""
    figure, axes = _canvas(len(names))
    bound = colour_bound(matrix)
    image = axes.imshow(
        matrix.T, aspect="auto", cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="nearest", rasterized=True
    )
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_xlabel("features, sorted by the class they serve most")
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("mean contribution to the logit", color=_QUIET)
    bar.outline.set_visible(False)
    return figure


def _canvas(rows: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(9.0, 1.4 + 0.32 * rows), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.tick_params(colors=_QUIET, labelcolor=_INK, length=0)
    axes.xaxis.label.set_color(_QUIET)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure, axes


def to_png(figure: Figure) -> bytes:
    """The figure as PNG. A script that matplotlib's font lacks comes out as boxes; the tables spell it right."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(sink, format="png")
    return sink.getvalue()
