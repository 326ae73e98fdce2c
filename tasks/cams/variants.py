"""What is drawn from one base method: its maps and their sums, with all features or the principal ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tasks.cams.names import MethodName
from tasks.cams.scaling import CommonScale, individual
from tasks.cams.weights import Weights
from tasks.classifier import Classifier

_DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Drawn:
    """maps: method -> [B,T,H,W], of volumes [B,T,D,H,W], in the method's dtype, values beyond its range at its ends;
    sums: `<variant>.<scale>` -> float64 [B,T], from the float32 maps. NaN where there is no map."""

    maps: dict[str, Tensor]
    sums: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Variant:
    """One base method, with or without feature selection, and the common scale of its archive."""

    base: str
    stored: Mapping[str, str]  # method -> raw | linear | tanh
    mask: Tensor | None  # [C,F] bool on the device; a class without a feature has no map
    common: Mapping[str, CommonScale]  # linear and tanh; empty where the archive's levels are not known

    @property
    def name(self) -> str:
        return str(MethodName(self.base, selected=self.mask is not None))

    @property
    def scales(self) -> tuple[str, ...]:
        """Those that its maps are summed on."""
        return ("raw", "individual", *self.common)

    def select(self, weights: Weights, classes: Tensor) -> Weights:
        """The weights of the principal features of classes [T] or [B,T]."""
        return weights if self.mask is None else weights.masked(self.mask[classes.clamp(min=0)])

    def missing(self, classes: Tensor) -> Tensor:
        """Which of classes [T] or [B,T] have no map: -1, and those for which no feature is known to be principal."""
        return classes < 0 if self.mask is None else (classes < 0) | ~self.mask[classes.clamp(min=0)].any(-1)

    def draw(self, saliency: Tensor, classes: Tensor) -> Drawn:
        """Maps and sums of signed saliency [B,T,*size], for classes [T] or [B,T]; -1 stands for none."""
        axes = saliency.ndim - 2
        cells = tuple(range(2, saliency.ndim))
        some, missing = classes.clamp(min=0), self.missing(classes)
        absent = missing[(..., *[None] * axes)]
        maps = {"raw": saliency} | {kind: scale.apply(saliency, some) for kind, scale in self.common.items()}
        sums = {scale: values.sum(cells, dtype=torch.float64) for scale, values in maps.items()}
        sums["individual"] = individual(saliency, axes=axes).sum(cells, dtype=torch.float64)
        return Drawn(
            {
                method: _held(maps[scale], MethodName.parse(method).dtype).masked_fill(absent, torch.nan)
                for method, scale in self.stored.items()
            },
            {f"{self.name}.{scale}": sums[scale].masked_fill_(missing, torch.nan) for scale in self.scales},
        )


def _held(maps: Tensor, dtype: str) -> Tensor:
    limits = torch.finfo(_DTYPES[dtype])
    return maps.clamp(limits.min, limits.max).to(_DTYPES[dtype])


def variants_of(
    methods: Sequence[MethodName],
    classifier: Classifier,
    *,
    scale: str,
    limits: Mapping[str, NDArray[np.float64]],
    masks: Mapping[str, NDArray[np.bool_]],
) -> tuple[Variant, ...]:
    """One variant for each base method and selection asked for, in the order of their first mention.

    limits [C,2] and masks [F,C] come from the profile, limits of each base method that is scaled and masks of each that
    is selected. Raises ModelError where a class's limits have no span.
    """
    stored: dict[tuple[str, bool], dict[str, str]] = {}
    for method in methods:
        stored.setdefault((method.base, method.selected), {})[str(method)] = scale if method.scaled else "raw"
    common = {
        base: {
            kind: CommonScale.between(limits[base], classifier.classes, layer=classifier.layer, kind=kind)
            for kind in ("linear", "tanh")
        }
        for base, _ in stored
        if base in limits
    }
    return tuple(
        Variant(
            base,
            maps,
            torch.from_numpy(np.ascontiguousarray(masks[base].T)).to(classifier.device) if selected else None,
            common.get(base, {}),
        )
        for (base, selected), maps in stored.items()
    )
