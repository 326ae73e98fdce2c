"""PNG, JPEG and TIFF: depth, alpha, palette, pages, damage."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from storage.decode import DecodeOptions, decode_image
from storage.errors import ImageError

Array = NDArray[Any]


def _file(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def gray() -> Array:
    return np.random.default_rng(1).integers(0, 256, (23, 31), dtype=np.uint8)


@pytest.fixture
def rgb() -> Array:
    return np.random.default_rng(2).integers(0, 256, (23, 31, 3), dtype=np.uint8)


@pytest.fixture
def words() -> Array:
    return np.random.default_rng(3).integers(0, 65536, (23, 31), dtype=np.uint16)


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_pixels_come_back_as_they_were_stored(format: str, gray: Array, rgb: Array, words: Array) -> None:
    for pixels in (gray, rgb, words):
        image = decode_image(_file(Image.fromarray(pixels), format), format=format)
        np.testing.assert_array_equal(image, pixels)
        assert image.dtype == pixels.dtype
        assert image.flags.c_contiguous


def test_a_jpeg_is_what_pillow_shows(rgb: Array) -> None:
    payload = _file(Image.fromarray(rgb), "jpeg", quality=90)
    np.testing.assert_array_equal(decode_image(payload, format="jpeg"), np.asarray(Image.open(io.BytesIO(payload))))


def test_a_palette_is_applied(rgb: Array) -> None:
    image = Image.fromarray(rgb).quantize(16)
    np.testing.assert_array_equal(decode_image(_file(image, "png"), format="png"), np.asarray(image.convert("RGB")))


def test_bilevel_pixels_are_black_and_white(gray: Array) -> None:
    image = decode_image(_file(Image.fromarray(gray > 128), "png"), format="png")
    np.testing.assert_array_equal(image, np.where(gray > 128, 255, 0))


def test_transparent_pixels_are_dark_whatever_lies_below(rgb: Array, gray: Array) -> None:
    alpha = np.full(gray.shape, 255, np.uint8)
    alpha[:10] = 0
    colour = decode_image(_file(Image.fromarray(np.dstack([rgb, alpha]), "RGBA"), "png"), format="png")
    shade = decode_image(_file(Image.fromarray(np.dstack([gray, alpha]), "LA"), "png"), format="png")
    for seen, pixels in ((colour, rgb), (shade, gray)):
        assert seen.shape == pixels.shape
        assert not seen[:10].any()
        np.testing.assert_array_equal(seen[10:], pixels[10:])


def test_half_transparent_pixels_are_half_as_bright() -> None:
    layers = np.full((4, 4, 2), (200, 128), np.uint8)
    image = decode_image(_file(Image.fromarray(layers, "LA"), "png"), format="png")
    np.testing.assert_array_equal(image, np.full((4, 4), round(200 * 128 / 255)))


def test_tiff_that_counts_from_white_is_turned_around(words: Array) -> None:
    payload = _file(Image.fromarray(words), "tiff", tiffinfo={262: 0})
    np.testing.assert_array_equal(decode_image(payload, format="tiff"), 65535 - words)


def test_floats_go_from_darkest_to_brightest_finite_value() -> None:
    pixels = np.array([[-2.0, 0.0], [2.0, np.nan]], np.float32)
    image = decode_image(_file(Image.fromarray(pixels), "tiff"), format="tiff")
    np.testing.assert_array_equal(image, np.array([[0.0, 0.5], [1.0, 0.0]], np.float32))


def test_pages_are_frames_and_each_is_held_to_the_cap(gray: Array) -> None:
    large = np.zeros((100, 100), np.uint8)
    payload = _file(Image.fromarray(gray), "tiff", save_all=True, append_images=[Image.fromarray(large)])
    np.testing.assert_array_equal(decode_image(payload, format="tiff", frame=1), large)
    options = DecodeOptions(pixels=gray.size)
    np.testing.assert_array_equal(decode_image(payload, format="tiff", options=options), gray)
    with pytest.raises(ImageError, match="10000 samples, over the cap"):
        decode_image(payload, format="tiff", frame=1, options=options)
    with pytest.raises(ImageError, match="the file has 2"):
        decode_image(payload, format="tiff", frame=2)


@pytest.mark.parametrize("format", ["png", "jpeg", "tiff"])
def test_damage_is_a_reason_and_not_a_crash(format: str, rgb: Array) -> None:
    payload = _file(Image.fromarray(rgb), format)
    for damaged in (payload[: len(payload) // 2], payload[:5], b"", b"not an image at all"):
        with pytest.raises(ImageError, match=format.upper()):
            decode_image(damaged, format=format)


def test_a_file_of_another_format_is_not_read(rgb: Array) -> None:
    with pytest.raises(ImageError, match="readable JPEG header"):
        decode_image(_file(Image.fromarray(rgb), "png"), format="jpeg")
