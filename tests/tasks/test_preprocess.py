"""Preprocessing equals torchvision's transforms, for every kind of image, on every device there is."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.models import ResNet18_Weights
from torchvision.transforms import InterpolationMode, v2

from tasks.preprocess import Preprocess

Array = NDArray[Any]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = Preprocess(resize=256, crop=224, channels=3, mean=MEAN, std=STD)
PLAIN = Preprocess(resize=None, crop=8, channels=1, mean=(0.0,), std=(1.0,))
CPU = torch.device("cpu")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


def _image(shape: tuple[int, ...], dtype: str = "uint8", seed: int = 0) -> Array:
    drawn = np.random.default_rng(seed).random(shape)
    top = 1 if dtype == "float32" else np.iinfo(dtype).max
    return (drawn * top).astype(dtype)


def _unit(image: Array) -> Tensor:
    """[h,w] or [h,w,3] -> [c,h,w] in [0, 1], the plain way."""
    top = 1.0 if image.dtype == np.float32 else float(np.iinfo(image.dtype).max)
    pixels = torch.from_numpy(image.astype(np.float64) / top).to(torch.float32)
    return pixels.unsqueeze(0) if image.ndim == 2 else pixels.permute(2, 0, 1)


def _torchvision(image: Array, resize: Any, crop: Any, interpolation: str) -> Tensor:
    steps: list[Any] = []
    if resize is not None:
        steps.append(v2.Resize(resize, interpolation=InterpolationMode(interpolation), antialias=True))
    steps += [v2.Lambda(lambda pixels: pixels.clamp(0, 1))]
    if crop is not None:
        steps.append(v2.CenterCrop(crop))
    shown: Tensor = v2.Compose(steps)(_unit(image))
    return shown


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    resize=st.one_of(st.none(), st.integers(4, 60), st.tuples(st.integers(4, 60), st.integers(4, 60))),
    crop=st.one_of(st.integers(4, 70), st.tuples(st.integers(4, 70), st.integers(4, 70))),
    channels=st.sampled_from([1, 3]),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_the_geometry_is_torchvisions(
    height: int, width: int, resize: Any, crop: Any, channels: int, dtype: str, interpolation: str
) -> None:
    image = _image((height, width) if channels == 1 else (height, width, 3), dtype)
    ours = Preprocess(resize, crop, channels, (0.0,) * channels, (1.0,) * channels, interpolation)
    expected = _torchvision(image, resize, crop, interpolation)
    torch.testing.assert_close(ours.picture([image], CPU)[0], expected, rtol=0, atol=2e-6)


def test_normalisation_is_torchvisions(device: torch.device) -> None:
    image = _image((300, 400, 3))
    expected = v2.Normalize(MEAN, STD)(_torchvision(image, 256, 224, "bilinear"))
    torch.testing.assert_close(IMAGENET([image], device)[0].cpu(), expected, rtol=0, atol=2e-5)


def test_a_photograph_is_seen_as_by_the_weights_own_transforms() -> None:
    """These round to whole gray levels after the resize; half a level, over std, is the difference allowed."""
    smooth = np.sin(np.linspace(0, 9, 320 * 480 * 3)).reshape(320, 480, 3)
    image = ((smooth + 1) * 127).astype(np.uint8)
    expected = ResNet18_Weights.DEFAULT.transforms()(Image.fromarray(image))
    ours = Preprocess(256, 224, 3, MEAN, STD)([image], CPU)[0]
    assert (ours - expected).abs().max() < 1.01 / 255 / min(STD)


def test_every_type_of_pixel_is_scaled_to_0_to_1(device: torch.device) -> None:
    images = [np.array([[0, top // 2, top]] * 3, dtype) for dtype, top in (("uint8", 255), ("uint16", 65535))]
    images.append(np.array([[0, 0.5, 1]] * 3, np.float32))
    preprocess = Preprocess(None, 3, 1, (0.0,), (1.0,))
    for image, middle in zip(preprocess(images, device).cpu(), (127 / 255, 32767 / 65535, 0.5), strict=True):
        torch.testing.assert_close(image[0], torch.tensor([[0.0, middle, 1.0]] * 3))


def test_gray_becomes_three_equal_channels_and_colour_becomes_luma(device: torch.device) -> None:
    gray, colour = _image((40, 50)), _image((40, 50, 3))
    three = Preprocess(32, 32, 3, (0.0,) * 3, (1.0,) * 3)([gray], device)[0]
    one = Preprocess(32, 32, 1, (0.0,), (1.0,))([colour], device)[0]
    assert torch.equal(three[0], three[1])
    assert torch.equal(three[0], three[2])
    luma = v2.functional.rgb_to_grayscale(_torchvision(colour, 32, 32, "bilinear"))
    torch.testing.assert_close(one.cpu(), luma, rtol=0, atol=2e-6)


def test_mixed_shapes_keep_their_places_and_equal_one_by_one(device: torch.device) -> None:
    shapes = [(300, 200), (64, 64, 3), (300, 200), (64, 64), (64, 64, 3), (500, 40)]
    images = [_image(shape, dtype, seed) for seed, shape in enumerate(shapes) for dtype in ("uint8", "uint16")]
    together = IMAGENET(images, device)
    assert together.shape == (12, 3, 224, 224)
    assert together.dtype == torch.float32
    for place, image in enumerate(images):
        torch.testing.assert_close(together[place], IMAGENET([image], device)[0], rtol=0, atol=1e-6)


def test_many_large_images_are_stacked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [_image((20, 20), seed=seed) for seed in range(7)]
    whole = PLAIN(images, CPU)
    monkeypatch.setattr("tasks.preprocess._STACK_PIXELS", 900)
    assert torch.equal(PLAIN(images, CPU), whole)


def test_read_only_arrays_are_taken_without_a_warning_and_left_alone() -> None:
    image = _image((9, 9), "float32")
    image.flags.writeable = False
    before = image.copy()
    IMAGENET([image], CPU)
    np.testing.assert_array_equal(image, before)


def test_a_small_image_gets_dark_margins_before_normalisation() -> None:
    shown = PLAIN.picture([np.full((4, 6), 255, np.uint8)], CPU)[0, 0]
    assert shown.sum() == 24
    assert shown[2:6, 1:7].min() == 1


def test_a_strip_a_thousand_times_longer_than_wide_stays_within_memory() -> None:
    strip = np.zeros((2, 40_000), np.uint8)
    strip[:, 20_000:] = 255
    shown = IMAGENET.picture([strip], CPU)[0, 0]
    assert shown.shape == (224, 224)
    assert shown[:, 0].max() == 0
    assert shown[:, -1].min() == 1


def test_bicubic_does_not_leave_the_range_of_a_display() -> None:
    steps = np.kron(np.eye(8), np.ones((4, 4))).astype(np.float32)
    shown = Preprocess((64, 64), None, 1, (0.0,), (1.0,), "bicubic").picture([steps], CPU)
    assert shown.min() == 0
    assert shown.max() == 1


def test_no_images_make_an_empty_batch() -> None:
    assert IMAGENET([], CPU).shape == (0, 3, 224, 224)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": None}, "input size is open"),
        ({"crop": None, "resize": None}, "input size is open"),
        ({"crop": 0}, "at least 1"),
        ({"resize": (0, 5)}, "at least 1"),
        ({"channels": 2}, "1 or 3 channels"),
        ({"mean": (0.5,)}, "one mean and std for each of 3"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"interpolation": "nearest"}, "bilinear or bicubic"),
    ],
)
def test_what_makes_no_input_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    arguments = {"resize": 256, "crop": 224, "channels": 3, "mean": MEAN, "std": STD}
    with pytest.raises(ValueError, match=message):
        Preprocess(**{**arguments, **changes})


def test_the_size_comes_from_the_crop_or_from_the_resize() -> None:
    assert IMAGENET.size == (224, 224)
    assert Preprocess((30, 40), None, 1, (0.0,), (1.0,)).size == (30, 40)
    assert Preprocess((30, 40), (20, 10), 1, (0.0,), (1.0,)).size == (20, 10)


@pytest.mark.parametrize("image", [np.zeros((4, 4)), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)])
def test_an_array_that_is_no_decoded_image_is_refused(image: Array) -> None:
    with pytest.raises(ValueError, match="expected \\[h,w\\]"):
        IMAGENET([image], CPU)


def test_it_needs_torch_and_numpy_only() -> None:
    others = {"pydicom", "PIL", "torchvision", "ray"}
    code = f"import sys; import tasks.preprocess; print(sorted({others} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@settings(deadline=None, max_examples=150)
@given(
    height=st.integers(20, 150),
    width=st.integers(20, 150),
    resize=st.one_of(st.none(), st.integers(40, 120), st.tuples(st.integers(40, 120), st.integers(40, 120))),
    crop=st.one_of(st.integers(30, 140), st.tuples(st.integers(30, 140), st.integers(30, 140))),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_box_lands_where_its_pixels_do(
    height: int, width: int, resize: Any, crop: Any, corners: tuple[float, ...]
) -> None:
    """Painted white into a black image and preprocessed: its edge is where the light falls to one half."""
    (x0, x1), (y0, y1) = (
        (int(min(pair) * (side - 10)), int(max(pair) * (side - 10)) + 10)
        for pair, side in ((corners[:2], width), (corners[2:], height))
    )
    image = np.zeros((height, width), np.uint8)
    image[y0:y1, x0:x1] = 255
    preprocess = Preprocess(resize, crop, 1, (0.0,), (1.0,))
    (box,) = preprocess.boxes(image.shape, torch.tensor([[x0, y0, x1, y1]]))
    lit = preprocess.picture([image], CPU)[0, 0] >= 0.5
    ys, xs = (torch.nonzero(lit.any(axis)).flatten() for axis in (1, 0))
    if not len(xs):  # at most the rim of the box is in the input
        assert box.isnan().all() or (box[2:] - box[:2]).min() <= 1
        return
    seen = torch.tensor([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])
    assert (box - seen).abs().max() <= 1


def test_the_usual_geometry_of_boxes_by_hand() -> None:
    """512 high and 1024 wide: halved, then 16 cut off above and 144 at the left."""
    found = IMAGENET.boxes((512, 1024, 3), torch.tensor([[400.0, 100, 500, 200], [0, 0, 1024, 512], [0, 0, 288, 512]]))
    assert found.dtype == torch.float64
    assert found[0].tolist() == [400 / 2 - 144, 100 / 2 - 16, 500 / 2 - 144, 200 / 2 - 16]
    assert found[1].tolist() == [0, 0, 224, 224]
    assert found[2].isnan().all()
    assert IMAGENET.boxes((512, 1024), torch.zeros(0, 4)).shape == (0, 4)


def test_a_box_in_a_small_image_is_moved_by_the_dark_margins() -> None:
    assert PLAIN.boxes((4, 5), torch.tensor([[0, 0, 5, 4], [1, 1, 2, 3]])).tolist() == [[1, 2, 6, 6], [2, 3, 3, 5]]


def test_a_box_of_a_long_strip_lands_where_its_pixels_do() -> None:
    strip = np.zeros((4, 40_000), np.uint8)
    strip[1:3, 20_000:20_002] = 255
    lit = IMAGENET.picture([strip], CPU)[0, 0] >= 0.5
    seen = [*(torch.nonzero(lit.any(axis)).flatten() for axis in (0, 1))]
    (box,) = IMAGENET.boxes(strip.shape, torch.tensor([[20_000, 1, 20_002, 3]]))
    expected = torch.tensor([seen[0][0], seen[1][0], seen[0][-1] + 1, seen[1][-1] + 1])
    assert (box - expected).abs().max() <= 1


def test_volumes_have_no_boxes() -> None:
    volumes = Preprocess((4, 4, 4), None, 1, (0.0,), (1.0,))
    with pytest.raises(ValueError, match="volumes have no boxes"):
        volumes.boxes((4, 4, 4), torch.zeros(1, 4))
