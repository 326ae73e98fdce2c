"""What the audit found: each with its number, the threshold of the configuration, and where to look.

A finding is a place to look at, not a verdict; the thresholds decide what is listed, never what is computed.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from storage.arrays import array_names, read_array
from storage.objects import Objects
from tasks.reductions.memory_use import MemoryUse
from workflows.configuration_findings import Findings
from workflows.profile_arrays import read_memory_use

_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: silent-features | dominant-feature | never-predicted | memory-disagrees | shared-slot | unsteady-slots |
    sanity-failed.

    evidence: features, slots, classes and counts.
    """

    kind: str
    number: float
    threshold: float
    sentence: str
    evidence: Mapping[str, Any]


def write_findings(
    run: Objects,
    thresholds: Findings,
    bases: tuple[str, ...],
    classes: tuple[str, ...],
    further: Iterable[Finding] = (),
) -> None:
    """Write `findings.json` from the finished profile and tables, and what further was found."""
    images = int(read_array(run, "profile.zarr", "images"))
    found: list[Finding] = []
    if "features/active" in array_names(run, "profile.zarr"):  # not of a black box
        found += _silent_features(read_array(run, "profile.zarr", "features/active"), thresholds.silent)
    found += _never_predicted(read_array(run, "profile.zarr", "predictions/count"), classes, images)
    for base in bases:
        importance = read_array(run, "profile.zarr", f"importance/{base}/all")
        found += _dominant_features(importance, base, classes, thresholds.dominant)
    use = read_memory_use(run)
    if use is not None:
        found += _memory_disagrees(use, classes, thresholds.agreement)
        found += _shared_slots(use, classes, thresholds.shared_slot)
        found += _unsteady_slots(use, classes, thresholds.steady)
    found += further
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


def _memory_disagrees(use: MemoryUse, classes: tuple[str, ...], threshold: float) -> Iterator[Finding]:
    """M-CAM explains the memory's classifier: what that means for the model hangs on how often both decide alike.

    Where most decisions are "not there", deciding alike is easy, so what the model predicts is looked at by itself too.
    """
    agreement, recall = use.agreement(), use.recall()
    each = np.fmin(agreement, recall)
    low = [int(index) for index in np.argsort(each, kind="stable") if each[index] < threshold]
    shown = low[:_SHOWN]
    evidence = {
        "classes": [classes[index] for index in shown],
        "agreement": [float(agreement[index]) for index in shown],
        "recall": [float(recall[index]) if np.isfinite(recall[index]) else None for index in shown],
        "count": len(low),
    }
    number, told = _alike(use.of_all_classes(), 0)
    follows = "the m-cam maps explain the memory's classifier, not the model."
    if number < threshold:
        yield Finding("memory-disagrees", number, threshold, f"The memory's classifier {told}: {follows}", evidence)
    elif low:
        number, told = _alike(use, low[0])
        sentence = (
            f"In {len(low)} of {len(classes)} classes the memory's classifier answers as the model does in less than "
            f"{threshold:.0%} of decisions or of the model's predictions. In {classes[low[0]]!r} it {told}: "
            f"of these classes {follows}"
        )
        yield Finding("memory-disagrees", number, threshold, sentence, evidence)


def _alike(use: MemoryUse, index: int) -> tuple[float, str]:
    """The smaller of a class's agreement and recall, and in words what it is a share of."""
    agreement, recall = float(use.agreement()[index]), float(use.recall()[index])
    if recall < agreement:
        of = f"{use.predicted[index]:,} of the model's predictions"
        return recall, f"predicts as the model does in only {recall:.1%} of {of}"
    return agreement, f"decides as the model does in only {agreement:.1%} of {use.decisions[index]:,} decisions"


def _shared_slots(use: MemoryUse, classes: tuple[str, ...], threshold: float) -> Iterator[Finding]:
    """Classes that hang on the same slot most often: what the memory cannot tell apart, M-CAM cannot either."""
    first = use.most_used(1)[:, 0]
    shares = use.shares().max(0)
    for slot in np.unique(first[first >= 0]):
        members = np.flatnonzero((first == slot) & (shares > threshold))
        if len(members) > 1:
            names = [classes[index] for index in members]
            yield Finding(
                "shared-slot",
                float(shares[members].min()),
                threshold,
                f"{len(names)} classes hang on slot {slot} of the memory most often, each in over {threshold:.0%} of "
                f"its images: {_few(names)}.",
                {"slot": int(slot), "classes": names[:_SHOWN], "count": len(names)},
            )


def _unsteady_slots(use: MemoryUse, classes: tuple[str, ...], threshold: float) -> Iterator[Finding]:
    """Classes whose slot changes with the noise of the search: their maps hang on chance."""
    steadiness = use.steadiness()
    low = [int(index) for index in np.argsort(steadiness, kind="stable") if steadiness[index] < threshold]
    if low:
        yield Finding(
            "unsteady-slots",
            float(steadiness[low[0]]),
            threshold,
            f"In {len(low)} of {len(classes)} classes less than {threshold:.0%} of the noise draws find the same slot "
            f"of the memory, in {classes[low[0]]!r} {steadiness[low[0]]:.1%}: their m-cam maps hang on chance.",
            {
                "classes": [classes[index] for index in low[:_SHOWN]],
                "steadiness": [float(steadiness[index]) for index in low[:_SHOWN]],
                "count": len(low),
            },
        )


def _few(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
