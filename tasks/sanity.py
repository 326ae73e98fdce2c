"""Whether maps hang on the model at all: sanity checks of the explanations themselves (Adebayo et al. 2018).

Randomised: weights drawn anew, stage by stage. Permuted: a model of the same architecture that learned permuted labels.
Repeated: the same input again. Maps are raw, signed, at native resolution, and of the class that the original predicts.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from storage.errors import ModelError
from tasks.cams.variants import variants_of
from tasks.classifier import Classifier
from tasks.consistency import consistency
from tasks.explain import ExplainSettings
from tasks.methods import unfit
from tasks.paintings import paintings
from tasks.redrawing import redrawn
from tasks.walk import Batch, Spacing, Walk

Maps = Mapping[str, NDArray[np.float32]]
"""Variant -> [N,*native], NaN where an image has none."""

CHECKS = ("randomised", "permuted", "repeated")
_TWICE = 4  # images that are shown twice at a time, and alone


@dataclass(frozen=True, slots=True)
class SanitySettings:
    """checks: of CHECKS; steps: stages of randomised at most; seed: of the weights that are drawn anew."""

    checks: frozenset[str] = frozenset(("randomised", "repeated"))
    steps: int = 6
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Decoded images, as for explain_shard. names: from which all noise follows; spacings: mm a pixel, if known."""

    images: Sequence[NDArray[Any]]
    names: Sequence[str]
    spacings: Sequence[Spacing]

    def part(self, places: NDArray[np.int64]) -> "Sample":
        return Sample(*([every[place] for place in places] for every in (self.images, self.names, self.spacings)))


@dataclass(frozen=True, slots=True)
class Likeness:
    """How like the original maps other maps of the same images and classes are.

    similarity: mean over n images of the rank correlation (Spearman) of the two maps' cells; magnitude: the same
    without its sign. An image whose other map is flat or not finite has none and counts as 0; unranked: how many. One
    whose original map is flat tells nothing and is left out of n. NaN where n is 0.
    """

    similarity: float
    magnitude: float
    unranked: int
    n: int

    @classmethod
    def of(cls, originals: NDArray[np.float32], others: NDArray[np.float32]) -> "Likeness":
        """Of maps [N,...] and [N,...]."""
        pairs = [(one.ravel(), other.ravel()) for one, other in zip(originals, others, strict=True) if _varies(one)]
        if not pairs:
            return cls(nan, nan, 0, 0)
        found = np.array([consistency(one, other).spearman if _varies(other) else nan for one, other in pairs])
        known = np.nan_to_num(found)
        return cls(float(known.mean()), float(np.abs(known).mean()), int(np.isnan(found).sum()), len(found))


@dataclass(frozen=True, slots=True)
class Redrawn:
    """A stage of randomised. through: the last module drawn anew; modules: how many so far; likeness: by variant."""

    through: str
    modules: int
    likeness: Mapping[str, Likeness]


@dataclass(frozen=True, slots=True)
class Repeated:
    """Largest absolute difference of two maps of one image over their largest magnitude; 0: the same bits.

    again: in a second call; beside: twice in one batch; alone: in a batch of one, and in one of two. A map that is
    finite once only differs by 1; images where neither is tell nothing and are left out. NaN where none is left.
    """

    again: float
    beside: float
    alone: float

    @property
    def largest(self) -> float:
        """Of those that are known."""
        return max((apart for apart in (self.again, self.beside, self.alone) if not isnan(apart)), default=nan)


@dataclass(frozen=True, slots=True)
class Checked:
    """images: that could be explained; failures: place in the sample -> reason; seconds: of one map alone, by base
    method; permuted, repeated: by variant; left_out: check -> why it could not be made."""

    images: int
    failures: Mapping[int, str]
    seconds: Mapping[str, float]
    randomised: tuple[Redrawn, ...]
    permuted: Mapping[str, Likeness]
    repeated: Mapping[str, Repeated]
    left_out: Mapping[str, str]


def check_sanity(
    classifier: Classifier,
    sample: Sample,
    settings: ExplainSettings,
    asked: SanitySettings,
    *,
    masks: Mapping[str, NDArray[np.bool_]],
    permuted: Classifier | None = None,
) -> Checked:
    """Make the checks asked for, and time each base method by itself. masks [F,C]: principal features of the original.

    permuted: the same architecture with weights that learned permuted labels. settings: its methods, rules, batch,
    precision and space count. Raises ModelError where the classifier cannot be explained at its layer.
    """
    drawing = _Drawing(settings, masks)
    first = drawing.of(classifier, sample)
    good = np.flatnonzero(first.classes >= 0)
    if not len(good):
        return Checked(0, first.failures, {}, (), {}, {}, {})
    sample, classes = sample.part(good), first.classes[good]
    originals = {name: maps[good] for name, maps in first.maps.items()}

    def likeness(other: Classifier) -> dict[str, Likeness]:
        others = drawing.of(other, sample, classes).maps
        return {name: Likeness.of(maps, others.get(name, np.full_like(maps, nan))) for name, maps in originals.items()}

    seconds, once_more = _each_alone(drawing, classifier, sample, classes)
    stages: list[Redrawn] = []
    left_out: dict[str, str] = {}
    if "randomised" in asked.checks:
        try:
            for stage in redrawn(classifier, steps=asked.steps, seed=asked.seed):
                stages.append(Redrawn(stage.names[-1], stage.modules, likeness(stage.classifier)))
        except ModelError as error:
            stages, left_out["randomised"] = [], str(error)
        else:
            if not stages:
                left_out["randomised"] = "the model only answers: it shows no weights that could be drawn anew"
    again = {name: _apart(maps, once_more[name]) for name, maps in originals.items()}
    return Checked(
        images=len(good),
        failures=first.failures,
        seconds=seconds,
        randomised=tuple(stages),
        permuted={} if permuted is None or "permuted" not in asked.checks else likeness(permuted),
        repeated=_repeated(drawing, classifier, sample, classes, again) if "repeated" in asked.checks else {},
        left_out=left_out,
    )


def forwards(images: int, asked: SanitySettings, *, together: int, alone: int) -> int:
    """Forwards of all checks, at most. together: of an image's maps of all methods; alone: of each method by itself."""
    times = 1 + asked.steps * ("randomised" in asked.checks) + ("permuted" in asked.checks)
    shown = 3 * min(_TWICE, images) * ("repeated" in asked.checks)
    return images * (times * together + alone) + shown * together


@dataclass(frozen=True, slots=True)
class _Drawn:
    """rows: places in the sample; classes: a class each, -1 where the image failed; failures: place -> reason."""

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    maps: Maps
    failures: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class _Drawing:
    """How maps are drawn, of whatever classifier and images."""

    settings: ExplainSettings
    masks: Mapping[str, NDArray[np.bool_]]

    def of(self, classifier: Classifier, sample: Sample, classes: NDArray[np.int64] | None = None) -> _Drawn:
        """Maps of classes [N]; None: of those predicted. What is not finite in a map stays so."""
        settings = self.settings
        variants = variants_of(settings.methods, classifier, scale=settings.scale, limits={}, masks=self.masks)
        walk = Walk(
            classifier,
            sample.images,
            sample.names,
            batch=settings.batch,
            precision=settings.precision,
            spacings=sample.spacings,
            unfit=unfit(settings.rules, sample.images, sample.spacings, settings.space),
        )

        def draw(batch: Batch) -> _Drawn:
            logits = batch.forward.logits
            targets = logits.argmax(1) if classes is None else torch.from_numpy(classes[batch.rows]).to(logits.device)
            size = tuple(batch.forward.activation.shape[2:])
            ((_, evidence),) = batch.evidence(targets[:, None], prod(size))  # one column is one chunk
            maps = {
                variant.name: painting.at(size)[:, 0].float().cpu().numpy()
                for variant, painting in paintings(settings.rules, variants, evidence, targets[:, None])
            }
            return _Drawn(batch.rows, targets.cpu().numpy(), maps, {})

        rows = np.arange(len(sample.images))
        found = np.full(len(rows), -1, np.int64)
        maps: dict[str, NDArray[np.float32]] = {}
        for part in walk.run(draw):
            found[part.rows] = part.classes
            for name, values in part.maps.items():
                maps.setdefault(name, np.full((len(rows), *values.shape[1:]), nan, np.float32))[part.rows] = values
        return _Drawn(rows, found, maps, walk.failures)

    def only(self, base: str) -> "_Drawing":
        methods = tuple(method for method in self.settings.methods if method.base == base)
        return replace(self, settings=replace(self.settings, methods=methods))

    def batches_of(self, images: int) -> "_Drawing":
        return replace(self, settings=replace(self.settings, batch=images))


def _each_alone(
    drawing: _Drawing, classifier: Classifier, sample: Sample, classes: NDArray[np.int64]
) -> tuple[dict[str, float], Maps]:
    """Seconds an image of each base method by itself, preparation and first forward included, and its maps."""
    seconds: dict[str, float] = {}
    maps: dict[str, NDArray[np.float32]] = {}
    for base in dict.fromkeys(method.base for method in drawing.settings.methods):
        before = _now(classifier.device)
        maps |= drawing.only(base).of(classifier, sample, classes).maps
        seconds[base] = (_now(classifier.device) - before) / len(classes)
    return seconds, maps


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _repeated(
    drawing: _Drawing, classifier: Classifier, sample: Sample, classes: NDArray[np.int64], again: Mapping[str, float]
) -> dict[str, Repeated]:
    """again: by variant."""
    few = np.arange(min(_TWICE, len(classes)))
    twice = few.repeat(2)
    pairs = drawing.batches_of(2).of(classifier, sample.part(twice), classes[twice]).maps
    alone = drawing.batches_of(1).of(classifier, sample.part(few), classes[few]).maps
    return {
        name: Repeated(again[name], _apart(maps[::2], maps[1::2]), _apart(maps[::2], alone[name]))
        for name, maps in pairs.items()
    }


def _apart(maps: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """Of maps [N,...], image by image: the largest difference over the largest magnitude, 2 at most; see Repeated."""
    one, other = (each.reshape(len(each), -1).astype(np.float64) for each in (maps, others))
    finite, too = (np.isfinite(each).all(1) for each in (one, other))
    one, other = one[finite & too], other[finite & too]
    size = np.maximum(np.abs(one).max(1), np.abs(other).max(1))
    found = np.abs(one - other).max(1) / np.where(size > 0, size, 1)
    return float(max([*found, *np.ones((finite ^ too).sum())], default=nan))


def _varies(values: NDArray[np.float32]) -> bool:
    return bool(np.isfinite(values).all() and np.ptp(values) > 0)
