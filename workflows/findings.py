"""What the audit found: each with its number, the threshold of the configuration, and where to look.

A finding is a place to look at, not a verdict; the thresholds decide what is listed, never what is computed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from storage.arrays import array_names, read_array
from storage.objects import Objects
from workflows.configuration import Findings

_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: silent-features | dominant-feature | never-predicted. evidence: features, classes and counts."""

    kind: str
    number: float
    threshold: float
    sentence: str
    evidence: Mapping[str, Any]


def write_findings(run: Objects, thresholds: Findings, bases: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """Write `findings.json` from the finished profile and tables."""
    images = int(read_array(run, "profile.zarr", "images"))
    found: list[Finding] = []
    if "features/active" in array_names(run, "profile.zarr"):  # not of a black box
        found += _silent_features(read_array(run, "profile.zarr", "features/active"), thresholds.silent)
    found += _never_predicted(read_array(run, "profile.zarr", "predictions/count"), classes, images)
    for base in bases:
        importance = read_array(run, "profile.zarr", f"importance/{base}/all")
        found += _dominant_features(importance, base, classes, thresholds.dominant)
    run.put("findings.json", json.dumps([asdict(item) for item in found], indent=2).encode())


def _silent_features(active: np.ndarray[Any, Any], threshold: float) -> Iterator[Finding]:
    """Redundancy: features whose cells are hardly ever above zero, in any image."""
    silent = np.flatnonzero(active < threshold)
    if len(silent):
        yield Finding(
            "silent-features",
            len(silent) / len(active),
            threshold,
            f"{len(silent)} of {len(active)} features are above zero in less than {threshold:.2%} of their cells.",
            {"features": silent[:_SHOWN].tolist(), "count": len(silent)},
        )


def _never_predicted(predictions: np.ndarray[Any, Any], classes: tuple[str, ...], images: int) -> Iterator[Finding]:
    never = np.flatnonzero(predictions == 0)
    if len(never):
        yield Finding(
            "never-predicted",
            len(never) / len(classes),
            0.0,
            f"{len(never)} of {len(classes)} classes are predicted for none of {images} images.",
            {"classes": [classes[index] for index in never[:_SHOWN]], "count": len(never)},
        )


def _dominant_features(
    importance: np.ndarray[Any, Any], base: str, classes: tuple[str, ...], threshold: float
) -> Iterator[Finding]:
    """Potential confounders: one feature that carries most of a class's column of the importance matrix."""
    size = np.abs(importance)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = size.max(0) / size.sum(0)
    for index in np.flatnonzero(shares > threshold):
        feature = int(size[:, index].argmax())
        yield Finding(
            "dominant-feature",
            float(shares[index]),
            threshold,
            f"Feature {feature} carries {shares[index]:.0%} of the importance of class {classes[index]!r} ({base}).",
            {"feature": feature, "class": classes[index], "method": base},
        )
