"""PNG, JPEG and TIFF files as arrays, through Pillow."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from storage.errors import ImageError
from storage.quiet import quiet

Array = NDArray[Any]

_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0


@dataclass(frozen=True, slots=True)
class RasterPixels:
    """One raster file, its header read, its frames decoded one by one.

    Orientation tags are left alone, as boxes are in pixels of the stored image.
    """

    image: Image.Image
    format: str
    pixels: int

    @classmethod
    def open(cls, payload: bytes, format: str, pixels: int) -> Self:
        """format: png | jpeg | tiff. Raises ImageError; `pixels` caps rows x columns x samples of a frame."""
        try:
            with quiet("PIL"):
                image = Image.open(BytesIO(payload), formats=(format.upper(),))
        except Image.DecompressionBombError:
            raise ImageError("the image has more pixels than Pillow reads") from None
        except Exception:
            raise ImageError(f"the file does not start with a readable {format.upper()} header") from None
        return cls(image, format, pixels)

    def frame(self, index: int) -> Array:
        """Gray [h,w] or RGB [h,w,3]: uint8, uint16 (white = max), or float32 in [0, 1]. Raises ImageError."""
        image = self.image
        try:
            with quiet("PIL"):
                frames = getattr(image, "n_frames", 1)
                if 0 <= index < frames and index != image.tell():
                    image.seek(index)
        except Exception:
            raise ImageError(f"frame {index + 1} of the {self.format.upper()} file cannot be found") from None
        if not 0 <= index < frames:
            raise ImageError(f"frame {index + 1} is asked for; the file has {frames}")
        size = image.width * image.height * len(image.getbands())
        if size > self.pixels:
            raise ImageError(
                f"an image of {image.height} x {image.width} has {size} samples, over the cap of {self.pixels}"
            )
        try:
            with quiet("PIL"):
                image.load()
        except MemoryError:
            raise
        except Exception:
            raise ImageError(f"the {self.format.upper()} data is damaged, or ends early") from None
        return _pixels(image)


def _pixels(image: Image.Image) -> Array:
    if image.mode.startswith("I;16"):
        return _words(image)
    if image.mode in ("I", "F"):
        return _stretched(np.asarray(image))
    if image.mode == "1":
        return np.ascontiguousarray(image.convert("L"))
    if image.mode == "L" and "transparency" not in image.info:
        return np.ascontiguousarray(image)
    if image.has_transparency_data:
        return _on_black(image)
    return np.ascontiguousarray(image if image.mode == "RGB" else image.convert("RGB"))


def _words(image: Image.Image) -> Array:
    """16-bit gray over the full range; TIFF may use 12 of the 16 bits, and may count from white."""
    words: Array = np.asarray(image).astype(np.uint16)
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return words
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0]
    top = 2**bits - 1
    words = words if bits == 16 else ((words.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)
    return np.uint16(65535) - words if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else words


def _stretched(values: Array) -> Array:
    """Integers of 32 bits and floats have no declared white: darkest to brightest finite value."""
    finite = np.isfinite(values)
    if not finite.any():
        raise ImageError("no pixel of the image is a finite number")
    low, high = float(values[finite].min()), float(values[finite].max())
    if low == high:
        return np.zeros(values.shape, np.float32)
    return ((np.where(finite, values, low).astype(np.float64) - low) / (high - low)).astype(np.float32)


def _on_black(image: Image.Image) -> Array:
    """Transparent pixels are dark: what lies hidden below them is not what a reader sees."""
    gray = image.mode in ("L", "LA", "La")
    layers = np.asarray(image.convert("LA" if gray else "RGBA")).astype(np.uint16)
    seen = (layers[..., :-1] * layers[..., -1:] + 127) // 255
    return np.ascontiguousarray(seen[..., 0] if gray else seen).astype(np.uint8)
