"""The stream of synthetic images: image n is drawn from the settings and n alone, so any part can be drawn anywhere."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from examples.phantom.anatomy import Anatomy, Floats, Frame, chest
from examples.phantom.confounders import CONFOUNDERS
from examples.phantom.findings import Box, effusion, heart_box, heart_size, nodules, opacity
from examples.phantom.settings import FINDINGS, Facts, Settings, facts

_SHARP = 0.0028  # of the side: blur of the detector
_SCATTER = 0.07  # of the side: how far radiation is scattered


@dataclass(frozen=True, slots=True)
class Phantom:
    """A synthetic image. pixels [S,S] in [0,1], bright where it is dense; boxes: finding and x0, y0, x1, y1 in pixels,
    half-open; confounder: its box where it was drawn."""

    facts: Facts
    pixels: Floats
    boxes: tuple[tuple[str, Box], ...]
    confounder: Box | None


def phantoms(settings: Settings, start: int, stop: int) -> Iterator[Phantom]:
    """Images `start` up to `stop`, one at a time."""
    return (draw(settings, number) for number in range(start, stop))


def draw(settings: Settings, number: int) -> Phantom:
    known = facts(settings, number)
    clean, boxes, confounder = radiograph(settings, known, known.findings)
    noisy = _exposed(clean, settings.random(6, number))
    return Phantom(known, noisy, boxes, confounder)


def radiograph(
    settings: Settings, known: Facts, findings: Collection[str]
) -> tuple[Floats, tuple[tuple[str, Box], ...], Box | None]:
    """Without noise, with only `findings` of an image: pixels [S,S] in [0,1], the boxes, and that of the confounder.

    Each finding has draws of its own, so that leaving one out leaves all else as it is.
    """
    anatomy = Anatomy.drawn(settings.random(3, *known.patient))
    frame = Frame.posed(settings.side, settings.random(4, known.number))
    draws = {name: settings.random(5, known.number, place) for place, name in enumerate(FINDINGS)}
    contrasts = {name: float(random.uniform(*settings.contrast)) for name, random in draws.items()}
    larger = "Cardiomegaly" in findings
    size = heart_size(draws["Cardiomegaly"], contrasts["Cardiomegaly"]) if larger else 1.0
    body = chest(anatomy, frame, size)
    thickness = body.thickness
    boxes: list[tuple[str, Box]] = [("Cardiomegaly", heart_box(body))] if larger else []
    for name in FINDINGS:
        if name not in findings or name == "Cardiomegaly":
            continue
        random, contrast = draws[name], contrasts[name]
        if name == "Effusion":
            drawn = effusion(anatomy, frame, body, random, contrast)
        elif name == "Nodule":
            drawn = nodules(anatomy, frame, random, contrast)
        else:
            drawn = opacity(anatomy, frame, random, contrast)
        for one in drawn:
            thickness = thickness + one.added
            boxes.append((name, one.box))
    box = None
    if known.confounded and settings.confounder is not None:
        random = settings.random(7, known.number)
        confounder = CONFOUNDERS[settings.confounder.kind](frame, random)
        thickness, box = thickness + confounder.added, confounder.box
    pixels = _seen(thickness, settings.random(8, known.number))
    return pixels, tuple(boxes), box


def _seen(thickness: Floats, random: np.random.Generator) -> Floats:
    """Blur, scatter, uneven exposure and the tone of one image."""
    side = len(thickness)
    sharp = gaussian_filter(thickness, _SHARP * side)
    step = max(1, side // 64)
    small = gaussian_filter(sharp[::step, ::step], _SCATTER * side / step)
    scattered = _resized(small, side)
    uneven = _resized(random.standard_normal((4, 4)).astype(np.float32), side)
    gain, offset, gamma = random.uniform(0.88, 1.12), random.uniform(-0.03, 0.03), random.uniform(0.85, 1.2)
    tone = gain * (0.85 * sharp + 0.15 * scattered) * (1 + 0.03 * uneven) + offset
    return np.asarray(1.4 * (1 - np.exp(-1.15 * np.clip(tone, 0, None) ** gamma)), np.float32)


def _exposed(clean: Floats, random: np.random.Generator) -> Floats:
    """With the noise of counted quanta, more where less comes through, part of it correlated between pixels."""
    side = len(clean)
    white = random.standard_normal(clean.shape).astype(np.float32)
    grain = gaussian_filter(random.standard_normal(clean.shape).astype(np.float32), 0.005 * side)
    noise = 0.75 * white + 0.65 * grain / grain.std()
    level = random.uniform(0.006, 0.018)
    return np.asarray(np.clip(clean + level * np.exp(0.8 * clean) * noise, 0, 1), np.float32)


def _resized(coarse: Floats, side: int) -> Floats:
    return np.asarray(zoom(coarse, side / len(coarse), order=1, grid_mode=True, mode="nearest"), np.float32)
