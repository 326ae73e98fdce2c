"""How explanations are named: a base method, optionally feature-selected (fs-) and commonly scaled (s-)."""

from dataclasses import dataclass
from typing import Self

FEATURE_METHODS = (
    "cam",
    "grad-cam",
    "pixel-grad-cam",
    "xgrad-cam",
    "grad-cam++",
    "smooth-grad-cam++",
    "layer-cam",
    "eigen-cam",
    "eigen-grad-cam",
    "ablation-cam",
    "score-cam",
    "ss-cam",
    "is-cam",
)
"""Sums over features of weight times activation: they have an importance matrix, and features to select."""

MEMORY_METHODS = ("m-cam",)
"""Sums over features too, whose weights come from a memory that is fitted to the classifier first."""

PROBABILITY_METHODS = ("glas", "glas-light", "glas-shadow", "rglas", "occlusion", "rise", "lime")
"""Maps from probabilities alone: the classifier may be a black box."""

GRADIENT_METHODS = ("gradient", "meaningful-perturbation")
"""Maps from gradients with respect to the input: the classifier is differentiated as a whole."""

BASE_METHODS = FEATURE_METHODS + MEMORY_METHODS + PROBABILITY_METHODS + GRADIENT_METHODS

SMALL_VALUED = ("glas", "glas-light", "glas-shadow", "occlusion", "rise", "lime", "gradient")
"""Methods whose raw values go down with the probability, or the slope, to less than float16 holds."""

UNSCALED = {
    "rglas": "is scaled to [0, 1] by itself",
    "lime": "holds the coefficients of a model fitted to one image",
    "meaningful-perturbation": "is a mask in [0, 1]",
}
"""Methods whose maps have no common scale over an archive, and why."""


@dataclass(frozen=True, slots=True)
class MethodName:
    """`fs-s-grad-cam` is base `grad-cam`, selected and scaled. Raw maps keep their sign and unit."""

    base: str
    selected: bool = False
    scaled: bool = False

    @classmethod
    def parse(cls, name: str) -> Self:
        """Raises ValueError, with the names that exist, for anything else."""
        base = name
        selected = base.startswith("fs-")
        base = base.removeprefix("fs-")
        scaled = base.startswith("s-")
        base = base.removeprefix("s-")
        if base not in BASE_METHODS:
            raise ValueError(f"unknown method {name!r}; expected [fs-][s-] and one of {', '.join(BASE_METHODS)}")
        if scaled and base in UNSCALED:
            raise ValueError(f"{name!r}: a map of {base} {UNSCALED[base]} and has no common scale; leave out s-")
        if selected and base not in FEATURE_METHODS + MEMORY_METHODS:
            raise ValueError(f"{name!r}: {base} has no features to select; leave out fs-")
        return cls(base, selected, scaled)

    @property
    def dtype(self) -> str:
        """What its maps are stored as."""
        return "float32" if self.base in SMALL_VALUED and not self.scaled else "float16"

    def __str__(self) -> str:
        return f"{'fs-' if self.selected else ''}{'s-' if self.scaled else ''}{self.base}"
