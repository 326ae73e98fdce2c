"""The headers of PNG, JPEG and TIFF files, read by Pillow, which is loaded when the first one is met."""

import io
from typing import TYPE_CHECKING

from storage.errors import ImageError
from storage.quiet import quiet
from storage.summary import Header

if TYPE_CHECKING:
    from PIL import Image

_CHANNELS = {"1": 1, "L": 1, "LA": 2, "La": 2, "P": 3, "PA": 4, "RGBA": 4, "RGBa": 4}
_CHANNELS |= {"RGB": 3, "RGBX": 3, "CMYK": 3, "YCbCr": 3, "LAB": 3, "HSV": 3, "I": 1, "F": 1}
_BITS = {"1": 1, "I": 32, "F": 32}
_TIFF_BITS_PER_SAMPLE = 258
_PNG_BIT_DEPTH_AT = 24

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
}


def raster_format(head: bytes) -> str | None:
    """png, jpeg or tiff, by the first bytes."""
    return next((name for signature, name in _SIGNATURES.items() if head.startswith(signature)), None)


def summarise_raster(head: bytes, format: str, *, whole: bool) -> Header:
    """The header of the file that starts with these bytes.

    Raises EOFError when more bytes are needed (never if ``whole``), ImageError when the header is damaged.
    """
    from PIL import Image

    if format == "tiff" and not whole:
        raise EOFError  # its directories lie anywhere
    try:
        with quiet("PIL"), Image.open(io.BytesIO(head), formats=(format.upper(),)) as image:
            return _summary(image, format, head)
    except Image.DecompressionBombError:
        raise ImageError(f"the {format.upper()} declares more pixels than any reader takes") from None
    except Exception as error:
        # Pillow raises nearly anything for a damaged header, and more bytes may mend a cut one.
        if not whole:
            raise EOFError from None
        raise ImageError(f"the {format.upper()} header is damaged ({type(error).__name__})") from None


def _summary(image: "Image.Image", format: str, head: bytes) -> Header:
    frames = int(getattr(image, "n_frames", 1)) if format == "tiff" else 1
    return Header(
        format=format,
        height=image.height,
        width=image.width,
        channels=_CHANNELS.get(image.mode, 1 if image.mode.startswith("I;16") else 3),
        bits=_bits(image, format, head),
        frames=frames,
    )


def _bits(image: "Image.Image", format: str, head: bytes) -> int:
    """Bits a sample as stored: Pillow's mode does not say, where it narrows on reading."""
    from PIL import TiffImagePlugin

    if format == "png":
        return head[_PNG_BIT_DEPTH_AT]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (1,))[0])
    return 8
