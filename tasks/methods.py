"""Every base method by its name: CAM rules, and methods that paint a map without features.

M-CAM is not in METHODS: without a memory fitted to the classifier there is no rule of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.atlas import misplaced
from tasks.baselines import InputGradient, LimeMap, MeaningfulPerturbation, OcclusionMap, RiseMap
from tasks.cams.evidence import Evidence
from tasks.cams.mcam import MCam
from tasks.cams.rules import RULES, Rule
from tasks.cams.scaling import resized
from tasks.glas import Glas, Looks, Recursion, Recursive, fuse
from tasks.search_points import Field


@runtime_checkable
class Painter(Protocol):
    """A method that makes its map without features."""

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        """Maps [B,T,H,W], or [B,T,D,H,W], of the evidence's classes, at any size."""
        ...

    def forwards(self, features: int, head: str) -> int:
        """As of a Rule; for each class where `by_class`. A backward pass counts as one."""
        ...

    @property
    def by_class(self) -> bool:
        """Whether classes cannot share the forwards."""
        ...


@dataclass(frozen=True, slots=True)
class GlasMap:
    """Light, shadow, or their fusion: one look at an image serves all classes and all three."""

    mode: str
    settings: Glas = field(default_factory=Glas)

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        probes, settings = evidence.probes, self.settings
        classes = evidence.classes.expand(len(probes.pixels), -1)
        if settings.coarse is None:
            looks = probes.looks(settings)
            return torch.stack([self._fused(one, those, size) for one, those in zip(looks, classes, strict=True)])
        found = probes.pixels.new_zeros(*classes.shape, *size)
        for row, column, target in _present(evidence):
            looks_at = probes.closer_looks(settings, row, target)
            found[row, column] = self._fused(looks_at, classes[row, column : column + 1], size)[0]
        return found

    def _fused(self, looks: Looks, classes: Tensor, size: tuple[int, ...]) -> Tensor:
        return fuse(looks, classes, size, self.settings, mode=self.mode)

    def forwards(self, features: int, head: str) -> int:
        return self.settings.forwards

    @property
    def by_class(self) -> bool:
        return self.settings.coarse is not None

    @property
    def millimetres(self) -> bool:
        return self.settings.unit == "mm"


@dataclass(frozen=True, slots=True)
class RglasMap:
    """Recursive GLAS: a search of its own for each image and class, whose iterations can be had too."""

    recursive: Recursive = field(default_factory=Recursive)

    def saliency(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        probes = evidence.probes
        found = probes.pixels.new_zeros(len(probes.pixels), evidence.classes.shape[-1], *size)
        for row, column, _ in _present(evidence):
            saliency = self._found(evidence)[row, column].saliency
            found[row, column] = resized(saliency[None, None], size)[0, 0]
        return found

    def steps(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        """The map of each iteration [B,T,R,*size]; NaN behind the last one that was needed."""
        probes = evidence.probes
        shape = (len(probes.pixels), evidence.classes.shape[-1], self.recursive.iterations)
        found = probes.pixels.new_full((*shape, *size), torch.nan)
        for row, column, _ in _present(evidence):
            steps = self._found(evidence)[row, column].steps
            found[row, column, : len(steps)] = resized(steps[None], size)[0]
        return found

    def _found(self, evidence: Evidence) -> dict[tuple[int, int], Recursion]:
        """By image and column. Kept for these classes alone: the maps of each iteration are at input size."""
        present = list(_present(evidence))
        probes = evidence.probes
        return probes.recent(
            self,
            present,
            lambda: {(row, column): probes.search(self.recursive, row, target) for row, column, target in present},
        )

    def so_far(self, evidence: Evidence, size: tuple[int, ...]) -> Tensor:
        """The map as it stands after each iteration [B,T,R,*size], not scaled; behind the last one it stays."""
        return self.steps(evidence, size).nan_to_num(0.0).cumsum(2)

    def forwards(self, features: int, head: str) -> int:
        """At most: most searches end before the last iteration."""
        return self.recursive.forwards

    @property
    def by_class(self) -> bool:
        return True

    @property
    def millimetres(self) -> bool:
        return self.recursive.settings.unit == "mm"


def _present(evidence: Evidence) -> Iterator[tuple[int, int, int]]:
    """Image, column and class of every place that stands for a class."""
    count = len(evidence.probes.pixels)
    classes, absent = (each.expand(count, -1).tolist() for each in (evidence.classes, evidence.absent))
    for row in range(count):
        for column, target in enumerate(classes[row]):
            if not absent[row][column]:
                yield row, column, target


Method = Rule | Painter

METHODS: Mapping[str, Method] = {
    **RULES,
    "glas": GlasMap("fusion"),
    "glas-light": GlasMap("light"),
    "glas-shadow": GlasMap("shadow"),
    "rglas": RglasMap(),
    "occlusion": OcclusionMap(),
    "rise": RiseMap(),
    "lime": LimeMap(),
    "gradient": InputGradient(),
    "meaningful-perturbation": MeaningfulPerturbation(),
}


def unfit(
    rules: Mapping[str, Method],
    images: Sequence[NDArray[Any]],
    spacings: Sequence[tuple[float, ...] | None] | None,
    space: Field | None,
) -> dict[int, str]:
    """Images that not all methods of an audit can be asked about, and why. space: of an atlas that all must lie in.

    Both passes leave them out, so that no image shapes a scale and is rejected afterwards.
    """
    found: dict[int, str] = {}
    known = [None] * len(images) if spacings is None else spacings
    millimetres = in_millimetres(rules)
    for index, (image, spacing) in enumerate(zip(images, known, strict=True)):
        reason = misplaced(image.shape[:-1], spacing, space) if space else None
        if reason is None and millimetres and spacing is None:
            reason = "its header gives no pixel spacing, which lengths in mm need (explain.glas.unit)"
        if reason is not None:
            found[index] = reason
    return found


def placed(rules: Mapping[str, Method], device: torch.device) -> dict[str, Method]:
    """The rules, and what they have learned, on the device that the classifier is on."""
    return {base: rule.on(device) if isinstance(rule, MCam) else rule for base, rule in rules.items()}


def in_millimetres(rules: Mapping[str, Method]) -> bool:
    """Whether any of the methods needs the images' spacing."""
    return any(isinstance(method, GlasMap | RglasMap) and method.millimetres for method in rules.values())
