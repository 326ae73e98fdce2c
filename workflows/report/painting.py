"""Class activation maps as pictures: colours that mean levels, laid over the image in grey.

Warm colours rise with the level, blue marks what lies below the archive's usual range, and where the level
is low the image shows through. Both hues differ in lightness too, so that the scale survives colour blindness
and a grey printer.
"""

import base64
import io
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from tasks.cams.scaling import HIGH_LEVEL, LOW_LEVEL

Array = np.ndarray[Any, Any]

_WARM = "inferno"
_COOL = (0.34, 0.71, 0.91)  # the sky blue of Okabe and Ito's palette
# Levels are linear S-CAM: the low limit at .1, the high one at .9. Images of a class lie far above what the
# archive usually shows of it, so the brighter half of the colours is left to what is above the high limit.
LOWEST, HIGHEST = -0.7, 2.5
_LEVELS = (LOWEST, LOW_LEVEL, 0.35, HIGH_LEVEL, HIGHEST)
_PLACES = (0.30, 0.30, 0.36, 0.66, 0.97)
_OPACITIES = (0.75, 0.0, 0.12, 0.62, 0.90)
_GROUND = 0.30
_LIT = (0.16, 0.80, 0.62)  # a bluish green, which no level has
_SIDE = 176  # pixels of the longer side of a tinted picture, whatever the classifier's input
_GREY = (0.10, 0.78)  # the image's own range below the colours, so that white bone and yellow evidence differ


def paint(picture: Array, level: Array) -> Array:
    """Lay levels [H,W] over a picture [H,W,3] uint8; the picture keeps its shapes and loses its colours."""
    return _blend(_grey(picture), level)


def tint(picture: Array, region: Array) -> Array:
    """Tint and outline a region [H,W] bool of a picture [H,W,3] uint8, which keeps its shapes and loses its colours."""
    sides = [max(1, round(_SIDE * side / max(region.shape))) for side in region.shape]
    size = (sides[1], sides[0])
    grey = _grey(np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)))
    inside = np.asarray(Image.fromarray(region).resize(size, Image.Resampling.NEAREST))
    around = np.pad(inside, 1, mode="edge")
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    opacity = np.where(inside, np.where(inner, 0.25, 1.0), 0.0)[..., None]
    return np.asarray(np.round(255 * (grey * (1 - opacity) + np.array(_LIT) * opacity)), np.uint8)


def _grey(picture: Array) -> Array:
    low, high = _GREY
    grey = low + (high - low) * (picture @ np.array([0.299, 0.587, 0.114])) / 255.0
    return np.repeat(grey[..., None], 3, axis=-1)


def legend(low: float = LOWEST, high: float = HIGHEST, width: int = 400) -> Array:
    """The levels from `low` to `high` as a strip, painted the way the maps are, without an image below."""
    level = np.repeat(np.linspace(low, high, width)[None], 8, axis=0)
    return ground(level)


def ground(level: Array) -> Array:
    """Levels [H,W] without an image below."""
    return _blend(np.full((*level.shape, 3), _GROUND), level)


def place(level: float) -> float:
    """Where a level lies on the full legend, percent from the left; the ends hold what lies beyond them."""
    return 100 * (min(max(level, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)


def _blend(ground: Array, level: Array) -> Array:
    colours = matplotlib.colormaps[_WARM](np.interp(level, _LEVELS, _PLACES))[..., :3]
    colours[level < LOW_LEVEL] = _COOL
    opacity = np.interp(level, _LEVELS, _OPACITIES)[..., None]
    return np.asarray(np.round(255 * (ground * (1 - opacity) + colours * opacity)), np.uint8)


def data_uri(picture: Array, *, lossless: bool = False) -> str:
    """A picture [H,W,3] uint8 as a data URI; lossy ones keep full colour resolution."""
    sink = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(picture))
    if lossless:
        image.save(sink, "PNG", optimize=True)
    else:
        image.save(sink, "JPEG", quality=90, subsampling=0, optimize=True)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"


def colour_map(name: str, values: Array) -> Array:
    """Values 0..1 through one of matplotlib's maps, as uint8 [...,3]; beyond the ends the end's colour."""
    return np.asarray(255 * matplotlib.colormaps[name](np.clip(values, 0, 1))[..., :3], np.uint8)
