"""Synthetic findings: what each adds to the thickness of a chest, and the box around it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from examples.phantom.anatomy import Anatomy, Chest, Floats, Frame, lungs

_EDGE = 0.08  # of the greatest thickness that a finding adds: what is below is outside of its box
_FILLED = 0.9  # of the air that fluid replaces at contrast 1

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Drawn:
    """added [S,S]: thickness; box: x0, y0, x1, y1 in pixels, half-open; tight around `shadow`, what is seen of it."""

    added: Floats
    box: Box


def nodules(anatomy: Anatomy, frame: Frame, random: np.random.Generator, contrast: float) -> list[Drawn]:
    """One to three round, nearly homogeneous discs with a sharp edge, each in its own place in the lungs."""
    drawn = []
    for _ in range(1 + int(random.random() < 0.3) + int(random.random() < 0.15)):
        u, v = _place(anatomy, random)
        radius = random.uniform(0.06, 0.11)
        stretch, angle = random.uniform(0.85, 1.15), random.uniform(0, np.pi)
        square = _ellipse(frame, (u, v), (radius * stretch, radius / stretch), angle)
        added = contrast * 0.40 * np.clip(1 - square, 0, None) ** 0.6
        drawn.append(boxed(added))
    return drawn


def opacity(anatomy: Anatomy, frame: Frame, random: np.random.Generator, contrast: float) -> list[Drawn]:
    """A large cloudy patch in one lung: its outline and its inside are uneven."""
    u, v = _place(anatomy, random)
    axes = random.uniform(0.14, 0.26), random.uniform(0.14, 0.26)
    square = _ellipse(frame, (u, v), axes, random.uniform(0, np.pi))
    noise = random.standard_normal(frame.u.shape).astype(np.float32)
    coarse = _unit(gaussian_filter(noise, 0.09 * frame.scale))
    fine = _unit(gaussian_filter(noise, 0.022 * frame.scale))
    cloud = expit((1 - square + 0.35 * coarse) * 5) * np.clip(0.75 + 0.22 * coarse + 0.28 * fine, 0, None)
    near = expit((1.9 - square) * 12)
    one_lung = expit(np.sign(u) * frame.u * 60)
    added = contrast * 0.30 * cloud * near * one_lung * lungs(anatomy, frame.u, frame.v)
    return [boxed(added)]


def effusion(anatomy: Anatomy, frame: Frame, chest: Chest, random: np.random.Generator, contrast: float) -> list[Drawn]:
    """Fluid in the lower corner of one lung: its level climbs the ribs."""
    sign = -1 if random.random() < 0.5 else 1
    dome = anatomy.dome_right if sign < 0 else anatomy.dome_left
    across = sign * frame.u
    climb = 0.75 * np.clip(across - 0.30, 0, None) ** 1.5
    level = dome + 0.13 - random.uniform(0.10, 0.26) * (0.5 + 0.5 * contrast) - climb
    fluid = expit((frame.v - level) * 26) * expit((across - 0.24) * 16)
    return [boxed(_FILLED * (0.35 + 0.65 * contrast) * fluid * chest.air)]


def heart_size(random: np.random.Generator, contrast: float) -> float:
    """Factor by which a heart is wider than it would be."""
    return float(1.13 + 0.32 * contrast + random.uniform(-0.03, 0.03))


def heart_box(chest: Chest) -> Box:
    return boxed(chest.heart).box


def _place(anatomy: Anatomy, random: np.random.Generator) -> tuple[float, float]:
    """A point well inside a lung."""
    points = np.stack([random.uniform(-0.65, 0.65, 64), random.uniform(-0.5, 0.55, 64)], axis=1).astype(np.float32)
    inside = lungs(anatomy, points[:, 0], points[:, 1]) > 0.85
    u, v = points[inside.argmax()] if inside.any() else (np.float32(-0.35), np.float32(0.1))
    return float(u), float(v)


def _ellipse(frame: Frame, centre: tuple[float, float], axes: tuple[float, float], angle: float) -> Floats:
    """The square of the distance from the centre, 1 on the ellipse."""
    du, dv = frame.u - np.float32(centre[0]), frame.v - np.float32(centre[1])
    cos, sin = np.cos(angle), np.sin(angle)
    square = ((cos * du + sin * dv) / axes[0]) ** 2 + ((cos * dv - sin * du) / axes[1]) ** 2
    return np.asarray(square, np.float32)


def _unit(noise: NDArray[np.floating]) -> Floats:
    return np.asarray(noise / noise.std(), np.float32)


def boxed(added: NDArray[np.floating]) -> Drawn:
    seen = added > _EDGE * added.max()
    x, y = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
    return Drawn(np.asarray(added, np.float32), (int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1))
