"""Pass 1: what the classifier's features and class activations are like over the archive.

`profile_shard` is a pure function from a shard's images to a Profile; Profiles of shards merge into the
archive's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot

from storage.records import Box, Note
from tasks.cams.mcam import MCam, Remembered
from tasks.classifier import Classifier
from tasks.methods import METHODS, Method, Painter, unfit
from tasks.reductions.distribution import Counter, Distribution
from tasks.reductions.importance import Importance
from tasks.reductions.memory_use import MemoryUse, merge_uses
from tasks.reductions.moments import Moments
from tasks.reductions.profile import KINDS, Levels, Profile
from tasks.search_points import Field
from tasks.walk import Batch, Spacing, Walk, check_finite

__all__ = ["Profile", "ProfileSettings", "ShardProfile", "Truth", "predicted_classes", "profile_shard"]


@dataclass(frozen=True, slots=True)
class Truth:
    """What is known of a shard's images: labelled [N] whether anything is, positive [N,C] which classes; boxes: of
    each image, in pixels of the stored image, None where nobody drew any; None: of no image."""

    labelled: NDArray[np.bool_]
    positive: NDArray[np.bool_]
    boxes: Sequence[Sequence[Box] | None] | None = None


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """bases: base methods; bits: histogram buckets an octave, as a power of two; extrema: also count each map's
    minimum and maximum; batch: images a forward; precision: float32 | bf16; rules: base method -> its rule;
    space: of an atlas that every volume must lie in."""

    bases: tuple[str, ...]
    bits: int = 5
    extrema: bool = False
    batch: int = 32
    precision: str = "float32"
    rules: Mapping[str, Method] = field(default_factory=lambda: METHODS)
    space: Field | None = None

    @property
    def featured(self) -> tuple[str, ...]:
        """Bases that have an importance matrix."""
        return tuple(base for base in self.bases if not isinstance(self.rules[base], Painter))

    @property
    def slots(self) -> int | None:
        """Of M-CAM's memory, where that is among the bases."""
        memories = [rule.memory for rule in map(self.rules.__getitem__, self.bases) if isinstance(rule, MCam)]
        return memories[0].slots if memories and memories[0] is not None else None


@dataclass(frozen=True, slots=True)
class ShardProfile:
    """failures: position in the shard -> reason; such images count nowhere in the profile."""

    profile: Profile
    failures: dict[int, str]
    notes: tuple[Note, ...]


def profile_shard(
    classifier: Classifier,
    images: Sequence[NDArray[Any]],
    names: Sequence[str],
    truth: Truth,
    settings: ProfileSettings,
    *,
    spacings: Sequence[Spacing] | None = None,
) -> ShardProfile:
    """Profile decoded images [h,w] or [h,w,3], or volumes [d,h,w,1].

    names (what noise follows from), truth and spacings (mm a pixel, if known) have a row for each.
    Raises ModelError where the classifier cannot be explained at its layer.
    """
    walk = Walk(
        classifier,
        images,
        names,
        batch=settings.batch,
        precision=settings.precision,
        spacings=spacings,
        unfit=unfit(settings.rules, images, spacings, settings.space),
    )
    tally = _Tally(len(classifier.classes), settings, classifier.device)
    for part in walk.run(lambda batch: _part(batch, classifier.task, truth, settings)):
        tally.add(part)
    return ShardProfile(tally.profile(truth, classifier.task), walk.failures, walk.notes)


def predicted_classes(logits: Tensor, task: str) -> Tensor:
    """Which classes are predicted [B,C] bool: the largest logit, or in a multi-label task every probability
    above one half."""
    if task == "multi-label":
        return logits > 0
    return one_hot(logits.argmax(1), logits.shape[1]).bool()


@dataclass(frozen=True, slots=True)
class _BasePart:
    """One base method over one batch: saliency [B,C,h,w], of volumes [B,C,d,h,w]; of features, importance sums float64
    [F,C] of each kind."""

    saliency: Tensor
    sums: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Part:
    """One batch. counted: kind -> [B,C] bool, which image counts for which class; None: all do. memory: its use by
    m-cam, if asked for."""

    rows: NDArray[np.int64]
    activation: Tensor
    logits: Tensor
    counted: Mapping[str, Tensor | None]
    bases: Mapping[str, _BasePart]
    memory: MemoryUse | None


def _part(batch: Batch, task: str, truth: Truth, settings: ProfileSettings) -> _Part:
    activation, logits = batch.forward.activation, batch.forward.logits
    true = torch.from_numpy(truth.positive[batch.rows] & truth.labelled[batch.rows, None]).to(logits.device)
    predicted = predicted_classes(logits, task)
    counted = {"all": None, "true": true, "correct": true & predicted}
    remembered: Remembered | None = None  # of all classes, whatever chunk of them is at hand
    chunks: dict[str, list[_BasePart]] = {base: [] for base in settings.bases}
    every = torch.arange(logits.shape[1], device=logits.device)
    for columns, evidence in batch.evidence(every, activation.shape[2:].numel()):
        for base in settings.bases:
            method = settings.rules[base]
            if isinstance(method, Painter):
                painted = method.saliency(evidence, tuple(activation.shape[2:]))
                check_finite(painted, f"the map of {base}")
                chunks[base].append(_BasePart(painted, {}))
                continue
            weights = method.weights(evidence)
            saliency = weights.saliency(activation)
            check_finite(saliency, f"the map of {base}")
            if isinstance(method, MCam):
                remembered = method.remembered(evidence)
            totals = weights.totals(activation)
            sums = {
                kind: totals.summed(None if which is None else which[:, columns]) for kind, which in counted.items()
            }
            chunks[base].append(_BasePart(saliency, sums))
    memory = None
    if remembered is not None:
        recalled = predicted_classes(remembered.logits, task)
        memory = MemoryUse.of(remembered.found, remembered.likeness.shape[1], predicted, recalled, task)
    joined = {base: _joined(parts) for base, parts in chunks.items()}
    return _Part(batch.rows, activation, logits, counted, joined, memory)


def _joined(parts: Sequence[_BasePart]) -> _BasePart:
    """Chunks of class columns side by side."""
    if len(parts) == 1:
        return parts[0]
    return _BasePart(
        torch.cat([part.saliency for part in parts], 1),
        {kind: torch.cat([part.sums[kind] for part in parts], 1) for kind in parts[0].sums},
    )


class _Tally:
    """Adds up the batches of one shard, on the device."""

    def __init__(self, classes: int, settings: ProfileSettings, device: torch.device) -> None:
        self._classes = classes
        self._settings = settings
        self._device = device
        self._rows: list[NDArray[np.int64]] = []
        self._logits: list[Tensor] = []
        self._features: Counter | None = None  # the first batch says how many features there are
        self._levels = {base: _LevelCounter(classes, settings, device) for base in settings.bases}
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._images = {kind: torch.zeros(classes, dtype=torch.int64, device=device) for kind in KINDS}
        self._memory = None if settings.slots is None else MemoryUse.empty(settings.slots, classes)

    def add(self, part: _Part) -> None:
        self._rows.append(part.rows)
        self._logits.append(part.logits)
        for kind, which in part.counted.items():
            self._images[kind] += len(part.rows) if which is None else which.sum(0)
        if self._features is None:
            self._features = Counter(part.activation.shape[1], self._settings.bits, self._device)
        self._features.add(part.activation)
        self._memory = merge_uses(self._memory, part.memory)
        for base, found in part.bases.items():
            self._levels[base].add(found.saliency)
            if base not in self._sums:
                self._sums[base] = dict(found.sums)
            else:
                for kind, sums in found.sums.items():
                    self._sums[base][kind] += sums

    def profile(self, truth: Truth, task: str) -> Profile:
        if self._features is None:
            settings = self._settings
            return Profile.empty(
                bases=settings.bases,
                featured=settings.featured,
                classes=self._classes,
                bits=settings.bits,
                extrema=settings.extrema,
                slots=settings.slots,
            )
        rows, logits = np.concatenate(self._rows), torch.cat(self._logits)
        labelled = truth.labelled[rows]
        images = {kind: counts.cpu().numpy() for kind, counts in self._images.items()}
        return Profile(
            images=len(rows),
            labelled=int(labelled.sum()),
            labels=images["true"],
            predictions=predicted_classes(logits, task).sum(0).cpu().numpy(),
            logits=Moments.of(logits.cpu().numpy()),
            features=self._features.distribution(),
            importance={
                base: {kind: Importance(total.cpu().numpy(), images[kind]) for kind, total in sums.items()}
                for base, sums in self._sums.items()
                if sums
            },
            levels={base: counter.levels() for base, counter in self._levels.items()},
            memory=self._memory,
        )


class _LevelCounter:
    """Counts class-activation cells of one base method."""

    def __init__(self, classes: int, settings: ProfileSettings, device: torch.device) -> None:
        self._cells = Counter(classes, settings.bits, device)
        self._minima = Counter(classes, settings.bits, device) if settings.extrema else None
        self._maxima = Counter(classes, settings.bits, device) if settings.extrema else None

    def add(self, saliency: Tensor) -> None:
        self._cells.add(saliency)
        if self._minima is not None and self._maxima is not None:
            by_image = saliency.flatten(2)
            self._minima.add(by_image.amin(2))
            self._maxima.add(by_image.amax(2))

    def levels(self) -> Levels:
        return Levels(self._cells.distribution(), _counted(self._minima), _counted(self._maxima))


def _counted(counter: Counter | None) -> Distribution | None:
    return None if counter is None else counter.distribution()
