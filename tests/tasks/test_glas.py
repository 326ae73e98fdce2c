from dataclasses import replace
from math import exp

import pytest
import torch
from torch import nn

from storage.errors import ModelError
from tasks.glas import MODES, Glas, Recursive, fuse, look, look_for, rglas
from tests.tasks.small_classifiers import small

DARK = torch.tensor([-1.5, 0.25, -0.5])
FEW = Glas(points=4)


def probabilities(classes=5, device="cpu"):
    """A small classifier with random weights, as the black box that it is to GLAS."""
    module = small().module.to(device)
    return lambda inputs: module(inputs).softmax(1)[:, :classes]


def some_image(height=20, width=28, device="cpu"):
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(1)).to(device)


class Patches(nn.Module):
    """Class 1 is there if any of the patches is bright, each by itself (a noisy or); black is 0."""

    def __init__(self, *patches, seen=0.9):
        super().__init__()
        self.patches, self.seen = patches, seen

    def forward(self, inputs):
        missed = torch.ones(len(inputs))
        for rows, columns in self.patches:
            missed = missed * (1 - self.seen * inputs[:, 0, rows, columns].mean((1, 2)).clamp(0, 1))
        return torch.stack([missed, 1 - missed], 1)


class Counted:
    """How many inputs each forward had."""

    def __init__(self, predict):
        self.predict, self.batches = predict, []

    def __call__(self, inputs):
        self.batches.append(len(inputs))
        return self.predict(inputs)


BLACK, WHITE = torch.zeros(1), torch.ones(1, 60, 60)
UPPER_LEFT, LOWER_RIGHT = (slice(8, 16), slice(8, 16)), (slice(44, 52), slice(40, 48))


def full_mask(settings, sigma, row, column, height, width):
    """A Gaussian of peak 1 at a search point, pixel by pixel. sigma in cells, a 15th of the side."""
    y, x = (row + 0.5) * height / settings.points, (column + 0.5) * width / settings.points
    down = ((torch.arange(height) + 0.5 - y) / (sigma * height / 15)) ** 2
    across = ((torch.arange(width) + 0.5 - x) / (sigma * width / 15)) ** 2
    return torch.exp(-(down[:, None] + across[None, :]) / 2)


def test_light_and_shadow_equal_a_loop_that_builds_each_mask(device):
    predict, image, dark = probabilities(device=device), some_image(device=device), DARK.to(device)
    looks = look(predict, image, dark, FEW, step=7)
    level = dark[:, None, None]
    (whole,) = predict(image[None]).detach()
    torch.testing.assert_close(looks.whole, whole, atol=1e-6, rtol=0)
    for row in range(4):
        for column in range(4):
            light, shade = (full_mask(FEW, sigma, row, column, 20, 28).to(device) for sigma in (5.0, 3.0))
            (lit,) = predict((level + (image - level) * light)[None]).detach()
            (shaded,) = predict((level + (image - level) * (1 - shade))[None]).detach()
            torch.testing.assert_close(looks.light[row, column], lit, atol=1e-6, rtol=0)
            torch.testing.assert_close(looks.shadow[row, column], (whole - shaded).abs() + 1e-5, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(20, 28), (5, 4)])
def test_fusion_equals_a_double_loop_over_pixels_and_points(mode, size):
    settings = Glas(points=3, spatial=2.0)
    looks = look(probabilities(), some_image(), DARK, settings, step=64)
    scores = {"light": looks.light, "shadow": looks.shadow, "fusion": looks.light * looks.shadow}[mode][..., 2]
    expected = torch.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            for row in range(3):
                for column in range(3):
                    # In cells of a 15th of the side, whatever the map's size.
                    down = 15 * ((y + 0.5) / size[0] - (row + 0.5) / 3)
                    across = 15 * ((x + 0.5) / size[1] - (column + 0.5) / 3)
                    expected[y, x] += exp(-(down**2 + across**2) / 2.0**2) * float(scores[row, column]) / 9
    fused = fuse(looks, torch.tensor([2]), size, settings, mode=mode)
    torch.testing.assert_close(fused[0], expected, atol=1e-8, rtol=1e-5)


def test_only_the_points_that_are_alive_are_fused_and_counted():
    looks = look(probabilities(), some_image(), DARK, FEW, step=64)
    classes, size = torch.tensor([0, 3]), (20, 28)
    alive = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 0]]).bool()
    without = replace(looks, light=looks.light * alive[..., None])
    expected = fuse(without, classes, size, FEW) * 16 / 11
    torch.testing.assert_close(fuse(looks, classes, size, FEW, alive=alive), expected)
    torch.testing.assert_close(
        fuse(looks, classes, size, FEW, alive=torch.ones(4, 4).bool()), fuse(looks, classes, size, FEW)
    )
    assert not fuse(looks, classes, size, FEW, alive=torch.zeros(4, 4).bool()).any()


def test_an_image_costs_two_forwards_a_point_and_one_in_batches_that_are_full_but_for_the_last():
    predict = Counted(probabilities())
    look(predict, some_image(), DARK, FEW, step=8)
    assert predict.batches == [8, 8, 8, 8, 1]
    assert sum(predict.batches) == FEW.forwards == 2 * 4**2 + 1


@pytest.mark.parametrize("step", [1, 7, 16, 1000])
def test_the_batch_changes_nothing(step):
    looks = look(probabilities(), some_image(), DARK, FEW, step=step)
    other = look(probabilities(), some_image(), DARK, FEW, step=10)
    for values, others in ((looks.whole, other.whole), (looks.light, other.light), (looks.shadow, other.shadow)):
        torch.testing.assert_close(values, others, atol=1e-6, rtol=0)


def test_one_look_serves_every_class():
    predict, size = probabilities(), (20, 28)
    maps = fuse(look(predict, some_image(), DARK, FEW, step=16), torch.arange(5), size, FEW)
    for target in range(5):
        alone = look(lambda inputs, c=target: predict(inputs)[:, c : c + 1], some_image(), DARK, FEW, step=16)
        torch.testing.assert_close(maps[target], fuse(alone, torch.tensor([0]), size, FEW)[0])


def test_a_classifier_may_answer_with_a_view_of_its_input():
    def corner(inputs):
        return inputs[:, :, 0, 0]

    looks = look(corner, some_image(), DARK, FEW, step=8)
    copied = look(lambda inputs: corner(inputs).clone(), some_image(), DARK, FEW, step=8)
    torch.testing.assert_close(looks.light, copied.light, atol=0, rtol=0)
    torch.testing.assert_close(looks.shadow, copied.shadow, atol=0, rtol=0)


def test_under_a_constant_classifier_every_shadow_is_lambda_and_the_fused_scores_are_flat():
    settings = replace(FEW, offset=0.01)
    looks = look(lambda inputs: torch.full((len(inputs), 2), 0.5), some_image(), DARK, settings, step=16)
    assert (looks.shadow == 0.01).all()
    assert (looks.scores(torch.tensor([0, 1]), "fusion") == 0.5 * torch.tensor(0.01)).all()
    # Where the spread is wide there are no borders to see either.
    (saliency,) = fuse(looks, torch.tensor([0]), (20, 28), replace(settings, spatial=1000.0))
    torch.testing.assert_close(saliency, torch.full((20, 28), 0.005), rtol=1e-3, atol=0)


def test_an_image_that_is_dark_all_over_casts_no_shadow():
    image = DARK[:, None, None].expand(3, 20, 28).contiguous()
    looks = look(probabilities(), image, DARK, FEW, step=16)
    torch.testing.assert_close(looks.light, looks.whole.expand(4, 4, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(looks.shadow, torch.full((4, 4, 5), 1e-5), atol=1e-6, rtol=0)
    elsewhere = look(probabilities(), image, DARK + 1, FEW, step=16)
    assert elsewhere.shadow.max() > 1e-3


def test_small_sigmas_pinpoint_and_large_ones_cover():
    predict, areas = Patches(UPPER_LEFT), []
    for sigma in (1.0, 2.0, 4.0, 6.0):
        settings = Glas(light=sigma, shadow=sigma, spatial=sigma)
        looks = look(predict, WHITE, BLACK, settings, step=64)
        (saliency,) = fuse(looks, torch.tensor([1]), (60, 60), settings)
        y, x = divmod(int(saliency.argmax()), 60)
        assert 7 <= y <= 17
        assert 7 <= x <= 17
        areas.append(int((saliency > saliency.max() / 2).sum()))
    assert areas == sorted(set(areas))
    assert areas[0] < 4 * 8 * 8
    assert areas[-1] > 8 * areas[0]


@pytest.mark.parametrize(("unit", "part"), [("pixel", 4.0), ("fraction", 1 / 15)])
def test_a_cell_is_a_fifteenth_of_the_side_whatever_the_number_of_points(unit, part):
    """60 pixels a side: 4 pixels a cell."""
    other = replace(FEW, light=5 * part, shadow=3 * part, spatial=6 * part, unit=unit)
    image, classes = some_image(60, 60), torch.arange(5)
    maps = [
        fuse(look(probabilities(), image, DARK, settings, step=64), classes, (30, 30), settings)
        for settings in (FEW, other)
    ]
    torch.testing.assert_close(maps[0], maps[1])


def test_pixels_are_pixels_along_both_sides():
    settings = Glas(points=1, light=3.0, unit="pixel")
    image = torch.ones(1, 21, 45)
    lit = look(lambda inputs: inputs[:, 0, [10, 13, 10], [22, 22, 25]], image, BLACK, settings, step=1).light[0, 0]
    torch.testing.assert_close(lit, torch.tensor([1.0, exp(-0.5), exp(-0.5)]))


def test_rglas_finds_both_of_two_patches():
    settings = Glas(light=2.0, shadow=2.0, spatial=2.0)
    predict = Patches(UPPER_LEFT, LOWER_RIGHT)
    found = rglas(predict, WHITE, BLACK, 1, Recursive(settings), step=64)
    once = rglas(predict, WHITE, BLACK, 1, Recursive(settings, iterations=1), step=64)
    for patch in (UPPER_LEFT, LOWER_RIGHT):
        assert found.saliency[patch].mean() > 0.5
    assert found.saliency.min() == 0
    assert found.saliency.max() == 1
    assert found.saliency[28:34].mean() < 0.2
    torch.testing.assert_close(once.saliency, found.steps[0])


def test_rglas_darkens_what_it_has_found_and_looks_for_the_next():
    """The second patch says less than the first, so that one look alone hardly shows it."""
    settings = Glas(light=2.0, shadow=2.0, spatial=2.0)
    image = WHITE.clone()
    image[0, 30:] = 0.4
    found = rglas(Patches(UPPER_LEFT, LOWER_RIGHT), image, BLACK, 1, Recursive(settings), step=64)
    assert found.steps[0][LOWER_RIGHT].mean() < 0.5
    assert found.steps[1][LOWER_RIGHT].mean() > 0.5
    assert found.steps[1][UPPER_LEFT].mean() < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_search_points_are_only_ever_removed(seed):
    module = small(seed=seed).module
    found = rglas(lambda inputs: module(inputs).softmax(1), some_image(), DARK, 0, Recursive(FEW), step=64)
    assert len(found.alive) == len(found.steps) <= 10
    assert all(later <= earlier for earlier, later in zip((16, *found.alive), found.alive, strict=False))
    assert found.alive[0] < 16
    assert found.steps.min() >= 0
    assert found.steps.max() <= 1


@pytest.mark.parametrize("level", [0.0, 1e-30, 0.5, 1.0])
@pytest.mark.parametrize("points", [1, 4])
def test_rglas_ends_under_a_constant_classifier(level, points):
    def constant(inputs):
        return torch.full((len(inputs), 2), level)

    found = rglas(constant, some_image(), DARK, 1, Recursive(replace(FEW, points=points)), step=64)
    assert found.saliency.isfinite().all()
    assert found.stopped == ("ratio" if level < 0.01 else "no-points")


def test_rglas_ends_where_every_map_is_flat():
    """Without lambda nothing is left of a constant classifier's shadow."""
    settings = replace(FEW, offset=0.0)
    found = rglas(lambda inputs: torch.full((len(inputs), 2), 0.5), some_image(), DARK, 1, Recursive(settings), step=64)
    assert (found.stopped, found.alive) == ("iterations", (16,) * 10)
    assert not found.saliency.any()


def test_rglas_stops_for_the_reason_it_gives():
    predict, settings = Patches(UPPER_LEFT), Glas(points=5, light=2.0, shadow=2.0, spatial=2.0)
    assert rglas(predict, WHITE, BLACK, 1, Recursive(settings, ratio=1e-6), step=64).stopped == "ratio"
    found = rglas(predict, WHITE, BLACK, 1, Recursive(settings, ratio=1e6, reach=0.0), step=64)
    assert (found.stopped, found.alive[-1]) == ("no-points", 0)
    found = rglas(predict, WHITE, BLACK, 1, Recursive(settings, ratio=1e6, reach=1.0, iterations=3), step=64)
    assert (found.stopped, found.alive, len(found.steps)) == ("iterations", (25, 25, 25), 3)


def test_a_point_at_the_reach_itself_stays():
    """A single point has the largest value of the map, 1."""
    found = rglas(probabilities(), some_image(45, 45), DARK, 2, Recursive(Glas(points=1), ratio=1e6, reach=1.0), step=3)
    assert found.steps[0, 22, 22] == 1
    assert found.alive == (1,) * 10


def test_each_iteration_is_the_one_of_the_algorithm():
    """45 pixels a side: every search point is the centre of a pixel."""
    predict, classes = probabilities(), torch.tensor([2])
    settings = Glas(light=2.0, shadow=2.0, spatial=2.0)
    image, level = some_image(45, 45), DARK[:, None, None]
    found = rglas(predict, image, DARK, 2, Recursive(settings, ratio=1e6, iterations=3), step=64)
    alive, total, reached = torch.ones(15, 15).bool(), torch.zeros(45, 45), []
    for saliency, count in zip(found.steps, found.alive, strict=True):
        (fused,) = fuse(look(predict, image, DARK, settings, step=64), classes, (45, 45), settings, alive=alive)
        scaled = (fused - fused.min()) / (fused.max() - fused.min())
        torch.testing.assert_close(saliency, scaled, atol=1e-4, rtol=0)
        alive &= saliency[1::3, 1::3] <= 0.8
        assert alive.sum() == count
        image = level + (image - level) * (1 - saliency)
        total += saliency
        reached.append(float((saliency.mean() / predict(image[None])[0, 2]).sqrt()))
    assert count < 225
    torch.testing.assert_close(found.saliency, (total - total.min()) / (total.max() - total.min()))
    largest = max(reached)
    above, below = (
        rglas(predict, some_image(45, 45), DARK, 2, Recursive(settings, ratio=largest * factor, iterations=3), step=64)
        for factor in (1.001, 0.999)
    )
    assert above.stopped == "iterations"
    assert (below.stopped, len(below.steps)) == ("ratio", reached.index(largest) + 1)


def test_from_a_coarse_grid_the_map_is_nearly_the_same_for_two_fifths_of_the_forwards():
    settings = Glas(light=2.0, shadow=2.0, spatial=2.0, coarse=5)
    predict = Counted(Patches(UPPER_LEFT, LOWER_RIGHT))
    looks = look_for(predict, WHITE, BLACK, 1, settings, step=32)
    assert sum(predict.batches) == settings.forwards == (2 * 25 + 1) + (2 * 7 * 9 + 1)
    full = look(predict, WHITE, BLACK, settings, step=32)
    near, exact = (fuse(each, torch.tensor([1]), (60, 60), settings).flatten() for each in (looks, full))
    assert torch.corrcoef(torch.stack([near, exact]))[0, 1] > 0.99
    ranks = torch.stack([near.argsort().argsort(), exact.argsort().argsort()]).double()
    assert torch.corrcoef(ranks)[0, 1] > 0.99


def test_from_a_coarse_grid_the_points_that_matter_are_exact_and_the_others_estimated():
    """The patch lies around the centre, pixel 18 of 60, of coarse cell (1, 1): search points 3 to 5 both ways."""
    predict = Patches((slice(14, 22), slice(14, 22)))
    settings = Glas(light=2.0, shadow=2.0, coarse=5, share=1 / 25)
    full = look(predict, WHITE, BLACK, settings, step=32)
    looks = look_for(predict, WHITE, BLACK, 1, settings, step=32)
    coarse = look(predict, WHITE, BLACK, replace(settings, points=5, coarse=None), step=32)
    for values, exact, rough in ((looks.light, full.light, coarse.light), (looks.shadow, full.shadow, coarse.shadow)):
        torch.testing.assert_close(values[3:6, 3:6], exact[3:6, 3:6], atol=1e-6, rtol=0)
        # A third of the way from the centre of one coarse cell to that of the next.
        between = (2 * rough[2, 1] + rough[3, 1]) / 3
        torch.testing.assert_close(values[8, 4], between, atol=1e-6, rtol=0)
        assert (values[8, 4] - exact[8, 4]).abs().max() > 1e-3
    everywhere = look_for(predict, WHITE, BLACK, 1, replace(settings, share=1.0), step=32)
    torch.testing.assert_close(everywhere.light, full.light)
    torch.testing.assert_close(everywhere.shadow, full.shadow)


def test_without_a_coarse_grid_looking_for_a_class_is_looking():
    looks = look_for(probabilities(), some_image(), DARK, 2, FEW, step=16)
    torch.testing.assert_close(looks.light, look(probabilities(), some_image(), DARK, FEW, step=16).light)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 0}, "points: expected at least 1 search point a side, got 0"),
        ({"light": 0.0}, "light: expected a sigma above 0, got 0.0"),
        ({"shadow": -1.0}, "shadow: expected a sigma above 0"),
        ({"spatial": float("nan")}, "spatial: expected a sigma above 0, got nan"),
        ({"light": float("inf")}, "light: expected a sigma above 0, got inf"),
        ({"unit": "inch"}, "unit: expected one of cell, pixel, fraction, mm, got 'inch'"),
        ({"offset": -1e-5}, "offset: expected 0 or a small number above it"),
        ({"coarse": 4}, r"coarse: expected a divisor of points \(15\)"),
        ({"coarse": 15}, "coarse: expected a divisor"),
        ({"coarse": 1}, "coarse: expected a divisor"),
        ({"share": 0.0}, "share: expected a part of the coarse cells above 0, up to 1, got 0.0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Glas(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reach": 1.5}, "reach: expected a level from 0 to 1, got 1.5"),
        ({"ratio": 0.0}, "ratio: expected a number above 0, got 0.0"),
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
    ],
)
def test_bad_limits_of_the_recursion_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recursive(FEW, **options)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match=r"got \[3, 20, 28\] and \[1\]"):
        look(probabilities(), some_image(), BLACK, FEW, step=16)
    with pytest.raises(ValueError, match=r"step: expected at least 1"):
        look(probabilities(), some_image(), DARK, FEW, step=0)
    with pytest.raises(ModelError, match=r"expected probabilities \[16, classes\], got \[16\]"):
        look(lambda inputs: inputs.mean((1, 2, 3)), some_image(), DARK, FEW, step=16)
    looks = look(probabilities(), some_image(), DARK, FEW, step=16)
    with pytest.raises(ValueError, match="mode: expected one of light, shadow, fusion, got 'sum'"):
        fuse(looks, torch.tensor([0]), (20, 28), FEW, mode="sum")
