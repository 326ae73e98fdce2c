"""Every base method by its name: CAM rules, and methods that paint a map without features."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tasks.baselines import InputGradient, LimeMap, MeaningfulPerturbation, OcclusionMap, RiseMap
from tasks.cams.evidence import Evidence
from tasks.cams.rules import RULES, Rule
from tasks.cams.scaling import resized
from tasks.glas import Glas, fuse, rglas
from tasks.probes import Probes


@runtime_checkable
class Painter(Protocol):
    """A method that makes its map without features."""

    def saliency(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        """Maps [B,T,H,W] of the evidence's classes, at any size."""
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

    def saliency(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        looks = evidence.probes.looks(self.settings)
        classes = evidence.classes.expand(len(looks), -1)
        return torch.stack(
            [fuse(one, those, size, self.settings, mode=self.mode) for one, those in zip(looks, classes, strict=True)]
        )

    def forwards(self, features: int, head: str) -> int:
        return self.settings.forwards

    @property
    def by_class(self) -> bool:
        return False


@dataclass(frozen=True, slots=True)
class RglasMap:
    """Recursive GLAS: a search of its own for each image and class. reach: t_1; ratio: t_2."""

    settings: Glas = field(default_factory=Glas)
    reach: float = 0.8
    ratio: float = 5.0
    iterations: int = 10

    def saliency(self, evidence: Evidence, size: tuple[int, int]) -> Tensor:
        probes = evidence.probes
        count = len(probes.pixels)
        classes, absent = (each.expand(count, -1).tolist() for each in (evidence.classes, evidence.absent))
        found = probes.pixels.new_zeros(count, len(classes[0]), *probes.pixels.shape[-2:])
        for row, image in enumerate(probes.pixels):
            for column, target in enumerate(classes[row]):
                if not absent[row][column]:
                    found[row, column] = self._search(probes, image, target)
        return resized(found, size)

    def _search(self, probes: Probes, image: Tensor, target: int) -> Tensor:
        return rglas(
            probes.predict,
            image,
            probes.dark,
            target,
            self.settings,
            step=probes.step,
            reach=self.reach,
            ratio=self.ratio,
            iterations=self.iterations,
        ).saliency

    def forwards(self, features: int, head: str) -> int:
        """At most: most searches end before the last iteration."""
        return self.iterations * (self.settings.forwards + 1)

    @property
    def by_class(self) -> bool:
        return True


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
