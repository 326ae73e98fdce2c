"""What of a map is measured, on which images, and how."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """groups: of GROUPS in names.py; masked, perturbed: shares of the images that measures with one masked forward, and
    with many forwards, are taken on; draws, noise: of infidelity, std in units of the normalised input; sensitivity
    draws uniformly within radius; steps: of insertion and deletion; level: of the pointing game's blob; concept: q,
    the share of a feature's cells above its threshold; small: part of the image below which boxes are small."""

    groups: frozenset[str] = frozenset()
    masked: float = 1.0
    perturbed: float = 1.0
    seed: int = 0
    draws: int = 10
    noise: float = 0.003
    radius: float = 0.02
    steps: int = 20
    level: float = 0.95
    concept: float = 0.01
    small: float = 0.25

    def sampled(self, names: Sequence[str], share: float) -> NDArray[np.bool_]:
        """Which images belong to a seeded sample [N]: it follows from the name alone, and a smaller share's sample lies
        in a larger one's."""
        return np.array([_place(name, self.seed) < share for name in names], bool)


def _place(name: str, seed: int) -> float:
    """A number in [0, 1) that follows from name and seed."""
    digest = hashlib.sha256(f"{seed}|measures|{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2.0**64
