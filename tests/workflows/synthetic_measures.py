"""Synthetic measures of explanations: numbers that look like measured ones, drawn with a seed, and measured nowhere."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tasks.measures.names import GROUPS, MEASURES

METHODS = (
    "grad-cam",
    "s-grad-cam",
    "fs-grad-cam",
    "fs-s-grad-cam",
    "grad-cam++",
    "s-grad-cam++",
    "fs-grad-cam++",
    "fs-s-grad-cam++",
    "glas",
    "rglas",
)
_VARIANTS = ("grad-cam", "fs-grad-cam", "grad-cam++", "fs-grad-cam++", "glas", "rglas")
_SCALED = ("grad-cam", "fs-grad-cam", "grad-cam++", "fs-grad-cam++")
_STEPS = ("rglas[1]", "rglas[2]")
_CASES = 812
_SMALL_CASES = 96
_PERTURBED = 256
_NO_BOXES = "the configuration gives no boxes (archive.boxes)"

Found = tuple[str, str, str, float, float | None, float | None, int]
"""method, class, measure, value, low, high, n"""


def measures(groups: Sequence[str], *, boxes: bool, classes: Sequence[str]) -> Iterator[Found]:
    """Rows of metrics.parquet for the groups asked for."""
    for measure in MEASURES:
        group = GROUPS[measure.group]
        if measure.group in groups and (boxes or "boxes" not in group.needs):
            names = (*_VARIANTS, *_STEPS) if measure.group == "iou" else _VARIANTS
            n = _PERTURBED if group.sampled == "perturbed" else _SMALL_CASES if "small" in measure.name else _CASES
            for method in names:
                yield _row(method, measure.name, measure.factor, n)
    for base in ("grad-cam", "grad-cam++") if "features" in groups else ():
        for name in ("principal", "non-principal", "principal.union", "non-principal.union"):
            yield _row(base, f"accuracy.{name}", 0.3 if "non" in name else 1.0, _CASES)
    if "features" in groups:
        yield _row("model", "accuracy", 1.0, _CASES)
    if "performance" in groups:
        for name in ("auroc", "average precision"):
            yield _row("model", name, 1.0, _CASES)
    if "concepts" in groups and boxes:
        for name in ("concepts.disjoint", "concepts.unique"):
            yield _row("model", name, 400.0 if "disjoint" in name else 200.0, _CASES)
    for method in _SCALED:
        for scale in ("individual", "tanh"):
            for name in ("(all)", *classes):
                _, _, _, value, low, high, _ = _row(f"{method}.{scale}", "consistency", 1.0, _CASES, name)
                yield (f"{method}.{scale}", name, "consistency", value, low, high, _CASES)
                yield (f"{method}.{scale}", name, "consistency.normal", float(scale == "tanh"), None, None, _CASES)


def left_out(groups: Sequence[str], *, boxes: bool) -> list[dict[str, Any]]:
    """What left_out.json says of them."""
    needing = [name for name in groups if "boxes" in GROUPS[name].needs and not boxes]
    constant = {"measure": "auroc", "class": "Effusion", "reason": "every labelled image has this class, or none has"}
    return [{"measure": name, "class": None, "reason": _NO_BOXES} for name in needing] + [constant]


def costs(points: int) -> dict[str, dict[str, float]]:
    """What run.json says of the time of one map."""
    forwards = {"grad-cam": 1, "fs-grad-cam": 1, "grad-cam++": 1, "fs-grad-cam++": 1, "glas": 2 * points**2 + 1}
    return {
        name: {"forwards": count, "seconds": round(0.002 + 0.0015 * count, 4)} for name, count in forwards.items()
    } | {"rglas": {"forwards": 4 * points**2, "seconds": 1.5}}


def _row(method: str, measure: str, scale: float, n: int, name: str = "(all)") -> Found:
    draw = np.random.default_rng(zlib.crc32(f"{method} {measure} {name}".encode()))
    value = scale * draw.uniform(0.3, 0.9)
    half = scale * 0.9 / np.sqrt(n)
    return (method, name, measure, float(value), float(value - half), float(value + half), n)
