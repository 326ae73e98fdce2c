"""How explanations are named: a base method, optionally feature-selected (fs-) and commonly scaled (s-)."""

from dataclasses import dataclass
from typing import Self

BASE_METHODS = (
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
        return cls(base, selected, scaled)

    def __str__(self) -> str:
        return f"{'fs-' if self.selected else ''}{'s-' if self.scaled else ''}{self.base}"
