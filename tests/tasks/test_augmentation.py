"""Changes by chance: an image's own, torchvision's, as often as asked, and none where none is asked."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from tasks.augmentation import Augment

_AUGMENT = Augment(crop=0.5, flip=0.5, brightness=0.2, contrast=0.2, side=24)
_PLAIN = Augment(crop=1, flip=0, brightness=0, contrast=0, side=24)


def some_pictures(count, device, *, channels=1, side=32):
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=random).to(device)


def boxes(count, device, *, crop=1.0, flip=0.0, seed=0, epoch=0):
    """Of pictures of 32 x 32: left, right, top and bottom of what is kept [count], in pixels, and whether flipped.

    Read off what a crop makes of a picture whose red is the column and whose green is the row. It is enlarged, for
    only then is a ramp still a ramp.
    """
    along = torch.arange(32, dtype=torch.uint8, device=device)
    across, down = along.expand(32, 32), along[:, None].expand(32, 32)
    ramps = torch.stack([across, down, across]).expand(count, -1, -1, -1)
    augment = Augment(crop=crop, flip=flip, brightness=0, contrast=0, side=64)
    red, green = (augment(ramps, np.arange(count), seed=seed, epoch=epoch)[:, :2].double() * 255).cpu().unbind(1)
    steps = red[:, 32, 43] - red[:, 32, 20], green[:, 43, 32] - green[:, 20, 32]
    width, height = (step.abs() / 23 * 64 for step in steps)
    column, row = (red[:, 32, 20] + red[:, 32, 43]) / 2 + 0.5, (green[:, 20, 32] + green[:, 43, 32]) / 2 + 0.5
    sides = column - width / 2, column + width / 2, row - height / 2, row + height / 2
    return *(side.numpy() for side in sides), (steps[0] < 0).numpy()


class TestChance:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_an_image_is_changed_alone_as_in_any_batch(self, channels, device):
        pictures, rows = some_pictures(12, device, channels=channels), np.arange(100, 112)
        whole = _AUGMENT(pictures, rows, seed=3, epoch=5)
        order = np.random.default_rng(0).permutation(12)
        assert torch.equal(_AUGMENT(pictures[order], rows[order], seed=3, epoch=5), whole[order])
        for place in range(12):
            alone = _AUGMENT(pictures[place : place + 1], rows[place : place + 1], seed=3, epoch=5)
            assert torch.equal(alone[0], whole[place])

    def test_rows_epochs_and_seeds_differ(self, device):
        picture = some_pictures(1, device).expand(2, -1, -1, -1)
        asked = [((1, 2), 0, 0), ((1, 2), 1, 0), ((1, 2), 0, 1)]
        found = [_AUGMENT(picture, np.array(rows), seed=seed, epoch=epoch) for rows, seed, epoch in asked]
        every = torch.cat(found).cpu().unique(dim=0)
        assert len(every) == 6

    def test_sides_are_swapped_as_often_as_asked(self, device):
        for rate in (0, 0.3, 1):
            flipped = boxes(400, device, crop=0.5, flip=rate)[-1]
            assert flipped.mean() == pytest.approx(rate, abs=0 if rate in (0, 1) else 0.07)

    def test_crops_keep_shares_that_are_equally_likely_and_lie_anywhere_inside(self, device):
        sides = boxes(600, device, crop=0.4, seed=1, epoch=2)[:4]
        left, right, top, bottom = (side / 32 for side in sides)
        width, height = right - left, bottom - top
        share, ratio = width * height, width / height
        assert min(left.min(), top.min()) > -0.01
        assert max(right.max(), bottom.max()) < 1.01
        assert np.quantile(share, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([0.4, 0.55, 0.7, 0.85, 1], abs=0.04)
        assert 0.72 < ratio.min() < 0.79
        assert 1.27 < ratio.max() < 1.38
        assert abs(np.log(ratio).mean()) < 0.02
        assert abs(np.corrcoef(left, top)[0, 1]) < 0.5  # only as far as small crops have more room both ways
        for before, size in ((left, width), (top, height)):
            there = size < 0.9
            assert (before[there] / (1 - size[there])).mean() == pytest.approx(0.5, abs=0.05)

    def test_light_and_contrast_have_factors_within_what_is_asked(self, device):
        even = torch.full((300, 1, 24, 24), 100, dtype=torch.uint8, device=device)
        lit = Augment(crop=1, flip=0, brightness=0.3, contrast=0, side=24)(even, np.arange(300), seed=0, epoch=0)
        factors = (lit[:, 0, 0, 0] * 255 / 100).cpu().numpy()
        assert np.quantile(factors, [0, 0.5, 1]) == pytest.approx([0.7, 1, 1.3], abs=0.04)
        halves = torch.cat([even[..., :12] - 20, even[..., :12] + 20], -1)
        spread = Augment(crop=1, flip=0, brightness=0, contrast=0.3, side=24)(halves, np.arange(300), seed=0, epoch=0)
        factors = ((spread[:, 0, 0, -1] - spread[:, 0, 0, 0]) * 255 / 40).cpu().numpy()
        assert np.quantile(factors, [0, 0.5, 1]) == pytest.approx([0.7, 1, 1.3], abs=0.04)
        assert spread.mean((1, 2, 3)).cpu().numpy() == pytest.approx(100 / 255, abs=1e-5)


class TestParity:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_a_crop_is_that_of_torchvisions_own_transform(self, channels, device, monkeypatch):
        theirs = v2.RandomResizedCrop(24)
        given = {}
        monkeypatch.setattr(theirs, "make_params", lambda _: given)
        augment = Augment(crop=0.4, flip=0, brightness=0, contrast=0, side=24)
        pictures = some_pictures(20, device, channels=channels)
        left, right, top, bottom, _ = (np.rint(side).astype(int) for side in boxes(20, device, crop=0.4))
        ours = augment(pictures, np.arange(20), seed=0, epoch=0)
        for place in range(20):
            height, width = bottom[place] - top[place], right[place] - left[place]
            given.update(top=int(top[place]), left=int(left[place]), height=int(height), width=int(width))
            scaled = v2.functional.to_dtype(pictures[place], torch.float32, scale=True)
            torch.testing.assert_close(ours[place], theirs(scaled).expand(3, -1, -1), rtol=0, atol=1e-6)

    def test_light_comes_before_contrast_as_torchvision_does_each(self, device):
        wild = some_pictures(1, device, channels=3, side=24)
        soft = 100 + wild // 10  # which no factor drives out of range: of this the factors are read
        asked = [
            Augment(crop=1, flip=0, brightness=b, contrast=c, side=24) for b, c in ((0.5, 0), (0, 0.9), (0.5, 0.9))
        ]
        lit, spread = (part(soft, np.array([15]), seed=0, epoch=0)[0] for part in asked[:2])
        plain, scaled = (_PLAIN.plainly(picture)[0] for picture in (soft, wild))
        light = float((lit / plain).mean())
        contrast = float((spread.max() - spread.min()) / (plain.max() - plain.min()))
        assert light > 1.1
        assert contrast > 1.1
        expected = v2.functional.adjust_contrast(v2.functional.adjust_brightness(scaled, light), contrast)
        both = asked[2](wild, np.array([15]), seed=0, epoch=0)[0]
        torch.testing.assert_close(both, expected, rtol=0, atol=1e-5)


class TestWithoutChance:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("side", [24, 32])
    def test_where_nothing_is_asked_images_are_only_resized(self, channels, side, device):
        pictures = some_pictures(5, device, channels=channels)
        augment = Augment(crop=1, flip=0, brightness=0, contrast=0, side=side)
        plain = augment.plainly(pictures)
        torch.testing.assert_close(augment(pictures, np.arange(5), seed=0, epoch=0), plain, rtol=0, atol=1e-6)
        assert plain.shape == (5, 3, side, side)
        expected = v2.functional.resize(pictures.float() / 255, [side, side]).expand(-1, 3, -1, -1)
        torch.testing.assert_close(plain, expected, rtol=0, atol=1e-6)

    def test_results_are_float32_on_the_device_in_three_channels_and_in_range(self, device):
        wild = Augment(crop=0.05, flip=0.5, brightness=0.9, contrast=0.9, side=24)
        for channels in (1, 3):
            found = wild(some_pictures(40, device, channels=channels), np.arange(40), seed=0, epoch=0)
            assert found.shape == (40, 3, 24, 24)
            assert found.dtype == torch.float32
            assert found.device.type == device.type
            assert 0 <= float(found.min()) < float(found.max()) <= 1

    def test_no_image_gives_none(self, device):
        assert _AUGMENT(some_pictures(0, device), np.zeros(0, np.int64), seed=0, epoch=0).shape == (0, 3, 24, 24)
