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

Array = np.ndarray[Any, Any]

_WARM = "inferno"
_COOL = (0.34, 0.71, 0.91)  # the sky blue of Okabe and Ito's palette
# tanh presses everything above the high limit into 0.9..1, so that stretch gets the brightest third of the colours.
_LEVELS = (0.0, 0.35, 0.9, 1.0)
_PLACES = (0.30, 0.32, 0.66, 0.97)
_OPACITIES = (0.0, 0.10, 0.70, 0.90)
_GROUND = 0.30
_GREY = (0.10, 0.78)  # the image's own range below the colours, so that white bone and yellow evidence differ


def paint(picture: Array, level: Array) -> Array:
    """Lay levels [H,W], -1..1, over a picture [H,W,3] uint8; the picture keeps its shapes and loses its colours."""
    low, high = _GREY
    grey = low + (high - low) * (picture @ np.array([0.299, 0.587, 0.114])) / 255.0
    return _blend(np.repeat(grey[..., None], 3, axis=-1), level)


def legend(low: float = -1.0, high: float = 1.0, width: int = 400) -> Array:
    """The scale from `low` to `high` as a strip, painted the way the maps are, without an image below."""
    level = np.repeat(np.linspace(low, high, width)[None], 8, axis=0)
    return _blend(np.full((*level.shape, 3), _GROUND), level)


def _blend(ground: Array, level: Array) -> Array:
    level = np.clip(level, -1.0, 1.0)
    colours = matplotlib.colormaps[_WARM](np.interp(level, _LEVELS, _PLACES))[..., :3]
    colours[level < 0] = _COOL
    opacity = np.interp(level, (-1.0, *_LEVELS), (0.75, *_OPACITIES))[..., None]
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
