"""Pass 2: the maps of a shard, on the archive's common scale, and their sums for the consistency figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.records import Note
from tasks.boxes import rectangles_of
from tasks.cams.mcam import MCam
from tasks.cams.names import MEMORY_METHODS, MethodName
from tasks.cams.variants import Drawn, Variant, variants_of
from tasks.classifier import Classifier
from tasks.image_judge import Concepts, ImageJudge
from tasks.judge import Judge
from tasks.measures.settings import MeasureSettings
from tasks.methods import METHODS, Method, RglasMap, unfit
from tasks.paintings import paintings
from tasks.profile import Truth
from tasks.search_points import Field
from tasks.walk import Batch, Spacing, Walk, check_finite

NONE = -1  # no class in this column
_NOTHING = MeasureSettings()
STEPS = "-steps"  # behind the name of a method whose iterations have maps too
REMEMBERED = {"slot": "int32", "drop": "float64", "steady": "float64", "logit": "float64"}
"""What M-CAM's memory says of a case: the slot that the class hangs on, what its loss costs of the memory's logit, the
share of noise draws that find it too, and that logit."""


@dataclass(frozen=True, slots=True)
class ExplainSettings:
    """targets: predicted | labelled | all | class indices; columns: T, map columns an image; map: native | input |
    (H,W) or (D,H,W); scale: tanh | linear; batch: images a forward; precision: float32 | bf16; rules: base method ->
    its rule; space: of an atlas that every volume must lie in; measures: how the maps are judged, by default not."""

    methods: tuple[MethodName, ...]
    targets: str | tuple[int, ...] = "predicted"
    columns: int = 1
    map: str | tuple[int, ...] = "native"
    scale: str = "tanh"
    batch: int = 32
    precision: str = "float32"
    rules: Mapping[str, Method] = field(default_factory=lambda: METHODS)
    space: Field | None = None
    measures: MeasureSettings = _NOTHING


@dataclass(frozen=True, slots=True)
class Explained:
    """A shard's explanations. N images, T columns, C classes.

    classes int32 [N,T], -1 none; logits and probabilities float32 [N,C]; maps: method -> [N,T,H,W] in its dtype, of
    volumes [N,T,D,H,W], and `rglas-steps` with R iterations [N,T,R,...]; sums: `<base>.raw|individual`, and
    `.linear|tanh` where the profile has limits of the base, with `fs-` in front where features are selected -> float64
    [N,T], a map's sum over its cells on that scale. NaN: no class, no features known for it, or the image failed.
    remembered: with m-cam, REMEMBERED -> [N,T], -1 or NaN where there is no class or the image failed.
    measures: `<variant>.<column of tasks.measures.names>` -> float64 [N,T], and images: `accuracy` and
    `<base>.<way of tasks.measures.features>` -> float64 [N]; NaN: not measured. concepts: None where none are counted.
    failures: position in the shard -> reason. A shard without a good image has maps of 0 x 0 cells.
    """

    classes: NDArray[np.int32]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    maps: dict[str, NDArray[Any]]
    sums: dict[str, NDArray[np.float64]]
    remembered: dict[str, NDArray[Any]]
    measures: dict[str, NDArray[np.float64]]
    images: dict[str, NDArray[np.float64]]
    concepts: Concepts | None
    failures: dict[int, str]
    notes: tuple[Note, ...]


def explain_shard(
    classifier: Classifier,
    images: Sequence[NDArray[Any]],
    names: Sequence[str],
    truth: Truth,
    settings: ExplainSettings,
    *,
    limits: Mapping[str, NDArray[np.float64]],
    masks: Mapping[str, NDArray[np.bool_]],
    thresholds: NDArray[np.float64] | None = None,
    spacings: Sequence[Spacing] | None = None,
) -> Explained:
    """Explain decoded images [h,w] or [h,w,3], or volumes [d,h,w,1], with the profile's limits [C,2] and masks [F,C] of
    each base method.

    names: one for each image, from which all noise follows; thresholds [F]: above which a feature's cells count as a
    concept, where concepts are measured; spacings: mm a pixel of each, if known. Maps are mixed at
    native resolution, resized, then scaled. Raises ModelError where a class's limits have no span, or the classifier
    cannot be explained at its layer.
    """
    variants = variants_of(settings.methods, classifier, scale=settings.scale, limits=limits, masks=masks)
    walk = Walk(
        classifier,
        images,
        names,
        batch=settings.batch,
        precision=settings.precision,
        spacings=spacings,
        unfit=unfit(settings.rules, images, spacings, settings.space),
    )
    shard = _Shard(len(images), len(classifier.classes), settings.columns)

    rectangles = rectangles_of(classifier, images, truth)
    judges = _Judges(
        Judge(settings.measures, rectangles),
        ImageJudge(settings.measures, classifier.task, truth, rectangles, masks=masks, thresholds=thresholds),
    )

    def explain(batch: Batch) -> _Part:
        return _part(batch, _targets(batch, truth, settings), judges, variants, settings)

    for part in walk.run(explain):
        shard.add(part)
    return shard.explained(variants, walk, judges, _steps_of(settings))


@dataclass(frozen=True, slots=True)
class _Judges:
    """Of the maps, and of the images themselves."""

    maps: Judge
    images: ImageJudge


@dataclass(frozen=True, slots=True)
class _Part:
    """One batch, in main memory."""

    rows: NDArray[np.int64]
    classes: NDArray[np.int32]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    maps: dict[str, NDArray[Any]]
    sums: dict[str, NDArray[np.float64]]
    remembered: dict[str, NDArray[Any]]
    measures: dict[str, NDArray[np.float64]]
    images: dict[str, NDArray[np.float64]]
    concepts: Concepts | None


def _part(
    batch: Batch, targets: Tensor, judges: _Judges, variants: Sequence[Variant], settings: ExplainSettings
) -> _Part:
    size = _map_size(batch, settings.map)
    drawn: list[Drawn] = []
    remembered: list[dict[str, Tensor]] = []
    measured: list[dict[str, Tensor]] = []
    for columns, evidence in batch.evidence(targets, _elements(batch, size, judges.maps, settings)):
        classes = targets[..., columns]
        for variant, painting in paintings(settings.rules, variants, evidence, classes):
            saliency = painting.at(size)
            check_finite(saliency, f"the map of {variant.name}")
            drawn.append(variant.draw(saliency, classes))
            measured.append(judges.maps.of_map(batch, variant, painting, classes))
        for base in dict.fromkeys(variant.base for variant in variants):
            method = settings.rules[base]
            if isinstance(method, MCam):
                remembered.append(method.remembered(evidence).of_classes(evidence.classes, evidence.absent))
            if isinstance(method, RglasMap):
                drawn.append(Drawn({f"{base}{STEPS}": method.steps(evidence, size).half()}, {}))
                so_far = partial(method.so_far, evidence, batch.size)
                measured.append(judges.maps.of_steps(batch, iterations(base, method), so_far, classes))
    probabilities = batch.probes.probabilities
    return _Part(
        rows=batch.rows,
        classes=targets.expand(len(probabilities), -1).cpu().numpy().astype(np.int32),
        logits=batch.forward.logits.cpu().numpy(),
        probabilities=probabilities.cpu().numpy(),
        maps=_side_by_side([item.maps for item in drawn]),
        sums=_side_by_side([item.sums for item in drawn]),
        remembered=_side_by_side(remembered),
        measures=_side_by_side([*measured, judges.maps.of_noise(batch, targets, variants, settings.rules)]),
        images={name: values.cpu().numpy() for name, values in judges.images.of_images(batch).items()},
        concepts=judges.images.of_concepts(batch),
    )


def _elements(batch: Batch, size: tuple[int, ...], judge: Judge, settings: ExplainSettings) -> int:
    """What an image and a class need at once: a map, where it is judged at the input's size, and of a recursive method
    one for each iteration."""
    rules = (settings.rules[method.base] for method in settings.methods)
    searches = [rule.recursive.iterations for rule in rules if isinstance(rule, RglasMap)]
    whole = prod(batch.size) * max(searches, default=0)
    return max(prod(size), judge.cells(batch), whole)


def iterations(base: str, method: RglasMap) -> list[str]:
    """What the map after each iteration goes by where it is measured."""
    return [f"{base}[{step}]" for step in range(1, method.recursive.iterations + 1)]


def _targets(batch: Batch, truth: Truth, settings: ExplainSettings) -> Tensor:
    """Which classes are explained: [T] where it is the same for every image, else [B,T] with -1 for none."""
    logits = batch.forward.logits
    if settings.targets == "predicted":
        return logits.topk(settings.columns, dim=1).indices
    if settings.targets == "labelled":
        known = truth.positive[batch.rows] & truth.labelled[batch.rows, None]
        first = np.argsort(~known, axis=1, kind="stable")[:, : settings.columns]
        return torch.from_numpy(np.where(np.take_along_axis(known, first, 1), first, NONE)).to(logits.device)
    classes = range(logits.shape[1]) if settings.targets == "all" else settings.targets
    return torch.tensor(tuple(classes), device=logits.device)


def _map_size(batch: Batch, size: str | tuple[int, ...]) -> tuple[int, ...]:
    if size == "native":
        return tuple(batch.forward.activation.shape[2:])
    return batch.size if isinstance(size, str) else size


def _steps_of(settings: ExplainSettings) -> list[str]:
    asked = dict.fromkeys(method.base for method in settings.methods)
    rules = {base: settings.rules[base] for base in asked}
    return [step for base, rule in rules.items() if isinstance(rule, RglasMap) for step in iterations(base, rule)]


def _side_by_side(chunks: Sequence[dict[str, Tensor]]) -> dict[str, NDArray[Any]]:
    """Chunks of class columns, joined by name."""
    names = dict.fromkeys(name for chunk in chunks for name in chunk)
    return {name: torch.cat([chunk[name] for chunk in chunks if name in chunk], 1).cpu().numpy() for name in names}


class _Shard:
    """The shard's arrays, filled batch by batch; what no batch fills stays NaN, or -1 for a class."""

    def __init__(self, images: int, classes: int, columns: int) -> None:
        self._classes = np.full((images, columns), NONE, np.int32)
        self._logits = np.full((images, classes), np.nan, np.float32)
        self._probabilities = np.full((images, classes), np.nan, np.float32)
        self._maps: dict[str, NDArray[Any]] = {}
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._remembered: dict[str, NDArray[Any]] = {}
        self._measures: dict[str, NDArray[np.float64]] = {}
        self._images: dict[str, NDArray[np.float64]] = {}
        self._concepts: Concepts | None = None

    def add(self, part: _Part) -> None:
        self._classes[part.rows] = part.classes
        self._logits[part.rows] = part.logits
        self._probabilities[part.rows] = part.probabilities
        _fill(self._maps, part.maps, part.rows, len(self._classes))
        _fill(self._sums, part.sums, part.rows, len(self._classes))
        _fill(self._remembered, part.remembered, part.rows, len(self._classes))
        _fill(self._measures, part.measures, part.rows, len(self._classes))
        _fill(self._images, part.images, part.rows, len(self._classes))
        if part.concepts is not None:
            self._concepts = part.concepts if self._concepts is None else self._concepts.merge(part.concepts)

    def explained(self, variants: Sequence[Variant], walk: Walk, judges: _Judges, steps: Sequence[str]) -> Explained:
        images, columns = self._classes.shape
        for variant in variants:
            for method in variant.stored:
                self._maps.setdefault(method, np.full((images, columns, 0, 0), np.nan, MethodName.parse(method).dtype))
            for scale in variant.scales:
                self._sums.setdefault(f"{variant.name}.{scale}", np.full((images, columns), np.nan))
        if any(variant.base in MEMORY_METHODS for variant in variants):
            for name, dtype in REMEMBERED.items():
                self._remembered.setdefault(name, _nothing((images, columns), np.dtype(dtype)))
        for name in judges.maps.columns(variants, steps):
            self._measures.setdefault(name, np.full((images, columns), np.nan))
        for name in judges.images.columns():
            self._images.setdefault(name, np.full(images, np.nan))
        return Explained(
            classes=self._classes,
            logits=self._logits,
            probabilities=self._probabilities,
            maps=self._maps,
            sums=self._sums,
            remembered=self._remembered,
            measures=self._measures,
            images=self._images,
            concepts=self._concepts or judges.images.no_concepts(),
            failures=walk.failures,
            notes=walk.notes,
        )


def _fill(
    arrays: dict[str, NDArray[Any]], parts: Mapping[str, NDArray[Any]], rows: NDArray[np.int64], images: int
) -> None:
    for name, values in parts.items():
        if name not in arrays:
            arrays[name] = _nothing((images, *values.shape[1:]), values.dtype)
        arrays[name][rows] = values


def _nothing(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.full(shape, NONE if dtype.kind == "i" else np.nan, dtype)
