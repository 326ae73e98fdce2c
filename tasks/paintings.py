"""Maps of the methods asked for, as what can be had at any size: for storing, for judging, for summing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from tasks.cams.evidence import Evidence
from tasks.cams.scaling import individual, resized
from tasks.cams.variants import Variant
from tasks.methods import Method, Painter


class Painting(Protocol):
    """The maps of one variant of a method, [B,T] of an evidence's images and classes."""

    def at(self, size: tuple[int, ...]) -> Tensor:
        """Signed, in the method's unit, [B,T,*size]."""
        ...

    def aligned(self, size: tuple[int, ...]) -> Tensor:
        """Each map by itself in [0, 1], [B,T,*size]: what is not positive is 0, the maximum 1, a flat map 0. A sum over
        features is put there at native size, and then resized, which may lower its maximum."""
        ...


@dataclass(frozen=True, slots=True)
class Mixed:
    """A map that is known at one size, as a sum over features is."""

    native: Tensor

    def at(self, size: tuple[int, ...]) -> Tensor:
        return resized(self.native, size)

    def aligned(self, size: tuple[int, ...]) -> Tensor:
        return resized(individual(self.native, axes=self.native.ndim - 2), size)


@dataclass(frozen=True, slots=True)
class _Painted:
    """A map without features, painted once at each size."""

    method: Painter
    evidence: Evidence
    known: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def at(self, size: tuple[int, ...]) -> Tensor:
        if size not in self.known:
            self.known[size] = self.method.saliency(self.evidence, size)
        return self.known[size]

    def aligned(self, size: tuple[int, ...]) -> Tensor:
        return individual(self.at(size), axes=len(size))


def paintings(
    rules: Mapping[str, Method], variants: Sequence[Variant], evidence: Evidence, classes: Tensor
) -> Iterator[tuple[Variant, Painting]]:
    """A painting of each variant, for classes [T] or [B,T], -1 for none; a base method's weights are found once."""
    by_base: dict[str, list[Variant]] = {}
    for variant in variants:
        by_base.setdefault(variant.base, []).append(variant)
    for base, kinds in by_base.items():
        method = rules[base]
        if isinstance(method, Painter):
            yield from ((variant, _Painted(method, evidence)) for variant in kinds)
            continue
        weights = method.weights(evidence)
        for variant in kinds:
            yield variant, Mixed(variant.select(weights, classes).saliency(evidence.activation))
