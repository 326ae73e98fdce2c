"""A synthetic chest: soft tissue, lungs, heart, bones and vessels, as smooth shapes in coordinates of the body.

u runs from the image's left to its right, v from the shoulders down; the trunk lies within about [-1, 1]. What is
drawn is a thickness: 0 is air, 1 is dense tissue. No image of a person went into it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import expit

Floats = NDArray[np.float32]
Reals = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Of one made-up patient; each number is a factor or an offset within the range beside it."""

    trunk: float  # half the width of the body
    cage_width: float  # half-axes of the rib cage
    cage_height: float
    heart_width: float
    heart_height: float
    heart_tilt: float  # radians
    dome_right: float  # height of the diaphragm
    dome_left: float
    mediastinum: float  # half-width
    rib_spacing: float
    rib_phase: float
    rib_bend: float
    rib_weight: float
    clavicle: float  # height
    clavicle_slope: float
    softness: float  # thickness of what covers the lungs
    breast: float  # weight of its shadow
    stomach: float  # weight of the gas in it
    vessels: int  # seed of their course

    @classmethod
    def drawn(cls, random: np.random.Generator) -> "Anatomy":
        ranges = {
            "trunk": (0.84, 1.0),
            "cage_width": (0.57, 0.68),
            "cage_height": (0.88, 1.02),
            "heart_width": (0.22, 0.31),
            "heart_height": (0.21, 0.26),
            "heart_tilt": (0.35, 0.75),
            "dome_right": (0.44, 0.56),
            "dome_left": (0.48, 0.60),
            "mediastinum": (0.10, 0.14),
            "rib_spacing": (0.135, 0.165),
            "rib_phase": (0.0, 1.0),
            "rib_bend": (0.75, 1.25),
            "rib_weight": (0.05, 0.10),
            "clavicle": (-0.60, -0.50),
            "clavicle_slope": (-0.22, -0.05),
            "softness": (0.16, 0.30),
            "breast": (0.0, 0.10),
            "stomach": (0.0, 0.25),
        }
        return cls(
            **{name: float(random.uniform(*between)) for name, between in ranges.items()},
            vessels=int(random.integers(2**31)),
        )


@dataclass(frozen=True, slots=True)
class Frame:
    """Where each pixel of an image lies in the body. u, v [S,S]; scale: pixels a unit; centre: (x, y) of (0, 0)."""

    u: Floats
    v: Floats
    scale: float
    angle: float
    centre: tuple[float, float]

    @classmethod
    def posed(cls, side: int, random: np.random.Generator) -> "Frame":
        scale = side * random.uniform(0.46, 0.54)
        angle = random.normal(0, 0.035)
        centre = (side * (0.5 + random.normal(0, 0.02)), side * (0.5 + random.normal(0, 0.025)))
        y, x = np.mgrid[:side, :side].astype(np.float32)
        x, y = (x - centre[0]) / scale, (y - centre[1]) / scale
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return cls(cos * x + sin * y, cos * y - sin * x, float(scale), float(angle), centre)

    def pixels(self, u: Reals, v: Reals) -> tuple[Floats, Floats]:
        """x and y of points of the body."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return (
            ((cos * u - sin * v) * self.scale + self.centre[0]).astype(np.float32),
            ((sin * u + cos * v) * self.scale + self.centre[1]).astype(np.float32),
        )


@dataclass(frozen=True, slots=True)
class Chest:
    """thickness, heart [S,S]: of all, and of the heart alone; air [S,S]: of the lungs, taken from the rest."""

    thickness: Floats
    heart: Floats
    air: Floats


def chest(anatomy: Anatomy, frame: Frame, heart: float = 1.0) -> Chest:
    """Without findings, but for the size of the heart, a factor."""
    u, v = frame.u, frame.v
    across = np.abs(u)
    width = anatomy.trunk * (0.90 + 0.10 * np.tanh((v + 0.9) * 3) + 0.05 * v)
    neck = 0.16 + 1.1 * expit((v + 0.83) * 14)
    inside = expit((np.minimum(width, neck) - across) * 40)
    roundness = np.sqrt(np.clip(1 - (across / (width * 1.04)) ** 2, 0, 1))
    tissue = inside * (0.34 + 0.36 * roundness + 0.10 * expit((v - 0.55) * 9))
    heart_shadow = _heart(anatomy, u, v, heart)
    air = lungs(anatomy, u, v) * (0.60 - 0.5 * anatomy.softness) * _depth(anatomy, u, v) * (1 - 0.8 * heart_shadow)
    middle = _middle(anatomy, u, v)
    thickness = tissue - air + 0.10 * heart_shadow + middle
    thickness += inside * (_ribs(anatomy, u, v) + _clavicles(anatomy, u, v) + _breasts(anatomy, u, v))
    thickness += _vessels(anatomy, frame) * lungs(anatomy, u, v)
    gas = expit((1 - ((u - 0.34) / 0.16) ** 2 - ((v - anatomy.dome_left - 0.17) / 0.08) ** 2) * 5)
    thickness -= anatomy.stomach * gas * expit((v - _diaphragm(anatomy, u)) * 40)
    return Chest(np.clip(thickness, 0, None).astype(np.float32), heart_shadow, air.astype(np.float32))


def lungs(anatomy: Anatomy, u: Floats, v: Floats) -> Floats:
    """1 within, 0 without, with a soft edge; also at points."""
    cage = 1 - _cage(anatomy, u, v)
    medial = np.abs(u) - anatomy.mediastinum * (0.75 + 0.35 * expit((v - 0.05) * 8))
    field = expit(cage * 22) * expit(medial * 40) * expit((_diaphragm(anatomy, u) - v) * 38)
    return np.asarray(field, np.float32)


def _cage(anatomy: Anatomy, u: Floats, v: Floats) -> Floats:
    """The square of the distance from its middle, 1 at its edge."""
    edge = ((np.abs(u) - 0.07) / (anatomy.cage_width + 0.05 * v)) ** 2
    return np.asarray(edge + ((v - 0.32) / anatomy.cage_height) ** 2, np.float32)


def _depth(anatomy: Anatomy, u: Floats, v: Floats) -> Floats:
    return np.asarray(0.55 + 0.45 * np.sqrt(np.clip(1 - _cage(anatomy, u, v), 0, 1)), np.float32)


def _diaphragm(anatomy: Anatomy, u: Floats) -> Floats:
    """v of the domes: each falls off to the side, so that a sharp angle is left at the ribs."""
    height = np.where(u < 0, anatomy.dome_right, anatomy.dome_left)
    return np.asarray(
        height + 1.1 * (np.abs(u) - 0.27) ** 2 + 1.1 * np.clip(np.abs(u) - 0.38, 0, None) ** 2, np.float32
    )


def _heart(anatomy: Anatomy, u: Floats, v: Floats, size: float) -> Floats:
    """Larger hearts grow to the image's right and left more than up and down, and rest on the diaphragm."""
    a, b = anatomy.heart_width * size, anatomy.heart_height * (1 + 0.5 * (size - 1))
    cos, sin = np.cos(anatomy.heart_tilt), np.sin(anatomy.heart_tilt)
    du, dv = u - 0.09 - 0.05 * (size - 1), v - 0.31 + 0.05 * (size - 1)
    ventricle = ((cos * du + sin * dv) / a) ** 2 + ((cos * dv - sin * du) / b) ** 2
    atrium = ((u + 0.04 * size) / (0.15 * size)) ** 2 + ((v - 0.33) / 0.19) ** 2
    vessels = ((u - 0.03) / (0.13 * size)) ** 2 + ((v - 0.10) / 0.20) ** 2
    square = -np.log(np.exp(-4 * ventricle) + np.exp(-4 * atrium) + 0.6 * np.exp(-4 * vessels)) / 4
    return np.asarray(expit((1 - square) * 9) * np.clip(1.1 - 0.4 * square, 0, 1), np.float32)


def _middle(anatomy: Anatomy, u: Floats, v: Floats) -> Floats:
    """Mediastinum, spine with its discs, the knob of the aorta, hila, and the air of the trachea."""
    wide = 0.12 * np.exp(-((u / (anatomy.mediastinum * 0.95)) ** 4)) * expit((v + 0.75) * 12)
    discs = 0.5 + 0.5 * np.cos(2 * np.pi * (v / 0.115 + anatomy.rib_phase))
    spine = (0.035 + 0.035 * discs) * expit((0.075 - np.abs(u)) * 55)
    knob = 0.13 * np.exp(-(((u - 0.12) / 0.075) ** 2) - ((v + 0.24) / 0.09) ** 2)
    hila = 0.11 * np.exp(-(((np.abs(u) - 0.17) / 0.07) ** 2) - ((v - 0.02 - 0.03 * np.sign(-u)) / 0.13) ** 2)
    bifurcation = 0.10 * np.clip(v + 0.12, 0, None)
    trachea = 0.13 * np.exp(-(((np.abs(u + 0.01) - bifurcation) / 0.04) ** 2)) * expit((-0.06 - v) * 20)
    return np.asarray(wide + spine + knob + hila - trachea, np.float32)


def _ribs(anatomy: Anatomy, u: Floats, v: Floats) -> Floats:
    """Posterior ribs fall to the side, anterior ones, fainter, to the middle."""
    across = np.abs(u)
    behind = v + 0.10 - anatomy.rib_bend * (across - 0.16) ** 2 * np.sign(across - 0.16)
    before = v + 0.62 * across + 0.35 * (across - 0.35) ** 2
    cage = _cage(anatomy, u, v)
    within = expit((1.06 - cage) * 25) * expit((across - 0.07) * 40)
    edge = 1 + 0.9 * expit((cage - 0.78) * 16)  # seen along, where they turn
    rear = _bands(behind, anatomy.rib_spacing, anatomy.rib_phase, 0.030) * expit((0.68 - v) * 18)
    front = _bands(before, anatomy.rib_spacing * 1.15, anatomy.rib_phase + 0.37, 0.034)
    front *= expit((across - 0.24) * 20) * expit((v + 0.42) * 14) * expit((0.48 - v) * 14)
    return np.asarray(anatomy.rib_weight * within * (edge * rear + 0.55 * front), np.float32)


def _bands(height: Reals, spacing: float, phase: float, half: float) -> Floats:
    """Bones `spacing` apart: flat in the middle, brighter at their rims."""
    turn = height / spacing + phase
    off = np.abs(turn - np.round(turn)) * spacing / half
    return np.asarray(np.exp(-(off**6)) * (0.65 + 0.45 * off**2), np.float32)


def _clavicles(anatomy: Anatomy, u: Floats, v: Floats) -> Floats:
    across = np.abs(u)
    course = anatomy.clavicle + anatomy.clavicle_slope * across + 0.05 * np.sin((across - 0.1) * 6)
    off = np.abs(v - course) / (0.032 + 0.02 * expit((0.15 - across) * 20))
    ends = expit((across - 0.06) * 50) * expit((0.78 - across) * 30)
    return np.asarray(0.12 * np.exp(-(off**4)) * (0.7 + 0.35 * off**2) * ends, np.float32)


def _breasts(anatomy: Anatomy, u: Floats, v: Floats) -> Floats:
    square = ((np.abs(u) - 0.42) / 0.30) ** 2 + ((v - 0.38) / 0.27) ** 2
    return np.asarray(anatomy.breast * expit((1 - square) * (5 + 4 * np.clip(v, 0, 1))), np.float32)


def _vessels(anatomy: Anatomy, frame: Frame) -> Floats:
    """From each hilum outwards, thinner and fainter on the way: dense points, blurred to their width."""
    random = np.random.default_rng(anatomy.vessels)
    side = len(frame.u)
    way = np.linspace(0, 1, 160, dtype=np.float32)
    total = np.zeros((side, side), np.float32)
    for width, count in ((0.014, 18), (0.008, 44)):
        canvas = np.zeros((side, side), np.float32)
        for branch in range(count):
            sign = 1 if branch % 2 else -1
            angle = random.uniform(-1.35, 1.35)
            length = random.uniform(0.25, 0.6)
            bend = random.normal(0, 0.5)
            start = random.uniform(0, 0.45) if width < 0.01 else 0.0
            turned = angle + bend * way
            u = sign * (0.16 + (start + (1 - start) * way) * length * np.cos(turned))
            v = 0.03 + (start + (1 - start) * way) * length * np.sin(turned) * 1.35
            x, y = (np.rint(axis).astype(int) for axis in frame.pixels(u, v))
            seen = (x >= 0) & (x < side) & (y >= 0) & (y < side)
            np.add.at(canvas, (y[seen], x[seen]), ((1 - way) * length)[seen])
        # Points a pixel of the vessel's length do not depend on the side of the image.
        spread = gaussian_filter(canvas, max(width * frame.scale, 0.6))
        total += spread * (width * frame.scale) * (frame.scale / 160)
    return np.asarray(0.16 * np.tanh(1.6 * total), np.float32)
