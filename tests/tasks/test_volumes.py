"""Volumes: every method of images, along three sides. One of one slice is an image; a deep one is checked by loops.

All volumes here are synthetic.
"""

from dataclasses import replace
from itertools import product
from math import exp

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from storage.errors import ModelError
from tasks.cams.names import FEATURE_METHODS, MethodName
from tasks.capture import capturing
from tasks.classifier import Classifier
from tasks.explain import ExplainSettings, explain_shard
from tasks.glas import Glas, Recursive, fuse, look, look_for, rglas
from tasks.layers import resolve_layer
from tasks.methods import METHODS, GlasMap, RglasMap
from tasks.preprocess import Preprocess
from tasks.profile import ProfileSettings, profile_shard
from tests.tasks.small_classifiers import (
    CPU,
    QUICK_METHODS,
    deep_head,
    in_place_relu_head,
    names,
    pooled_head,
    small,
    some_truth,
)

HEADS = [pooled_head, in_place_relu_head, deep_head]
DARK = torch.tensor([-0.5])


def deepened(module):
    """The same layers over volumes, with kernels one slice deep."""
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*map(deepened, module))
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return nn.AdaptiveAvgPool3d(1)
    if isinstance(module, nn.Conv2d):
        size, stride, padding = ((one, *pair) for one, pair in zip((1, 1, 0), _geometry(module), strict=True))
        deep = nn.Conv3d(module.in_channels, module.out_channels, size, stride, padding)
        deep.load_state_dict({"weight": module.weight[:, :, None], "bias": module.bias})
        return deep
    return module


def _geometry(convolution):
    return convolution.kernel_size, convolution.stride, convolution.padding


class Deepened(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.trunk, self.head = deepened(flat.trunk), deepened(flat.head)

    def forward(self, volumes):
        return self.head(self.trunk(volumes))


def pair(head):
    """A classifier of images and the same of volumes of one slice."""
    flat = small(head())
    deep = replace(flat, module=Deepened(flat.module).eval().requires_grad_(False))
    return flat, replace(deep, preprocess=replace(flat.preprocess, resize=None, crop=(1, 16, 16)))


def slices(count):
    random = np.random.default_rng(3)
    return [random.random((16, 16), np.float32) for _ in range(count)]


def explained(model, images, settings, **scales):
    scales = {"limits": {}, "masks": {}} | scales
    return explain_shard(model, images, names(images), some_truth(len(images)), settings, **scales)


def deep_model(head=None, classes=3):
    """A real 3-D network: 8 features of 4 x 3 x 5 cells of a volume of 8 x 6 x 10."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 8, 3, stride=2, padding=1))
    head = head or nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, classes))
    module = nn.Sequential()
    module.add_module("trunk", trunk)
    module.add_module("head", head)
    preprocess = Preprocess(None, (8, 6, 10), 1, (0.25,), (0.5,))
    labels = tuple(f"class {index}" for index in range(classes))
    return Classifier(module.eval().requires_grad_(False), "trunk", labels, "one-label", preprocess, CPU)


def any_head():
    return nn.Sequential(nn.Conv3d(8, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 3 * 2 * 4, 3))


def volumes(count, shape=(8, 6, 10)):
    random = np.random.default_rng(5)
    return [random.random((*shape, 1), np.float32) for _ in range(count)]


@pytest.mark.parametrize("head", HEADS)
def test_a_volume_of_one_slice_has_the_maps_of_the_image_by_every_feature_method(head):
    flat, deep = pair(head)
    images = slices(3)
    bases = [name for name in FEATURE_METHODS if not (head is deep_head and name == "cam")]
    settings = ExplainSettings(tuple(map(MethodName, bases)), "all", 5, map=(6, 9), batch=2, rules=QUICK_METHODS)
    # Noise follows from the names, so both get the image's.
    truth = some_truth(3)
    expected = explain_shard(flat, images, names(images), truth, settings, limits={}, masks={})
    whole = [image[None, :, :, None] for image in images]
    deeper = replace(settings, map=(1, 6, 9))
    found = explain_shard(deep, whole, names(images), truth, deeper, limits={}, masks={})
    for base in bases:
        size = np.abs(expected.maps[base].astype(np.float64)).max()
        np.testing.assert_allclose(found.maps[base][:, :, 0], expected.maps[base], rtol=5e-3, atol=2e-3 * size)
        np.testing.assert_allclose(found.sums[f"{base}.individual"], expected.sums[f"{base}.individual"], rtol=5e-3)


@pytest.mark.parametrize("head", HEADS)
def test_a_volume_of_one_slice_has_the_profile_of_the_image(head):
    flat, deep = pair(head)
    images = slices(4)
    settings = ProfileSettings(("grad-cam", "pixel-grad-cam", "grad-cam++", "eigen-cam"), extrema=True)
    truth = some_truth(4)
    expected = profile_shard(flat, images, names(images), truth, settings).profile
    whole = [image[None, :, :, None] for image in images]
    found = profile_shard(deep, whole, names(images), truth, settings).profile
    for base in settings.bases:
        for kind in ("all", "true", "correct"):
            ours, theirs = found.importance[base][kind].matrix(), expected.importance[base][kind].matrix()
            np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)
        for source in ("pixel", "extrema"):
            ours, theirs = (profile.limits(base, source=source) for profile in (found, expected))
            np.testing.assert_allclose(ours, theirs, rtol=0.04, atol=1e-5)


class Pointwise(nn.Module):
    """Cells that do not mix: how they are laid out, as a volume or as an image, changes nothing."""

    def __init__(self, axes, head):
        super().__init__()
        convolution, pool = {2: (nn.Conv2d, nn.AdaptiveAvgPool2d), 3: (nn.Conv3d, nn.AdaptiveAvgPool3d)}[axes]
        self.trunk = nn.Sequential(convolution(1, 6, 1), nn.ReLU(), convolution(6, 8, 1))
        linear = nn.Linear(8, 5) if head == "pooled" else nn.Linear(8 * 60, 5)
        self.head = nn.Sequential(*([pool(1)] if head == "pooled" else []), nn.Flatten(), linear)

    def forward(self, inputs):
        return self.head(self.trunk(inputs))


@pytest.mark.parametrize("head", ["pooled", "any"])
def test_cells_of_a_volume_are_cells_as_any_others_to_every_feature_method(head):
    """A volume of 3 x 4 x 5 and the image of 12 x 5 that its slices make one above the other."""
    torch.manual_seed(1)
    flat = Pointwise(2, head)
    deep = Pointwise(3, head)
    deep.load_state_dict(
        {name: value[..., None] if value.ndim == 4 else value for name, value in flat.state_dict().items()}
    )
    labels = tuple(f"class {index}" for index in range(5))
    models = [
        Classifier(
            module.eval().requires_grad_(False),
            "trunk",
            labels,
            "one-label",
            Preprocess(None, size, 1, (0.5,), (0.25,)),
            CPU,
        )
        for module, size in ((flat, (12, 5)), (deep, (3, 4, 5)))
    ]
    images = volumes(3, (3, 4, 5))
    bases = [name for name in FEATURE_METHODS if not (head == "any" and name == "cam")]
    settings = ExplainSettings(tuple(map(MethodName, bases)), "all", 5, batch=2, rules=QUICK_METHODS)
    stacked, whole = (
        explain_shard(model, shaped, names(images), some_truth(3), settings, limits={}, masks={})
        for model, shaped in zip(models, ([image.reshape(12, 5) for image in images], images), strict=True)
    )
    for base in bases:
        size = np.abs(stacked.maps[base].astype(np.float64)).max()
        np.testing.assert_allclose(
            whole.maps[base].reshape(3, 5, 12, 5), stacked.maps[base], rtol=5e-3, atol=2e-3 * size, err_msg=base
        )


@pytest.mark.parametrize("head", [None, any_head])
def test_grad_cam_of_a_volume_is_what_autograd_gives_class_by_class(head):
    model, images = deep_model(head and head()), volumes(3)
    found = explained(model, images, ExplainSettings((MethodName("grad-cam"),), "all", 3, batch=2))
    assert found.maps["grad-cam"].shape == (3, 3, 4, 3, 5)
    for index, image in enumerate(images):
        batch = model.preprocess([image], CPU)
        activation = model.module.trunk(batch).requires_grad_()
        logits = model.module.head(activation)
        for target in range(3):
            (gradient,) = torch.autograd.grad(logits[0, target], activation, retain_graph=True)
            cam = (gradient.mean((2, 3, 4), keepdim=True) * activation).sum(1)[0].detach().numpy()
            np.testing.assert_allclose(found.maps["grad-cam"][index, target], cam, rtol=2e-3, atol=1e-5)


def test_the_map_of_a_linear_head_adds_up_to_the_logit_and_importance_to_its_mean():
    model, images = deep_model(), volumes(5)
    settings = ProfileSettings(("cam",))
    profile = profile_shard(model, images, names(images), some_truth(5, 3), settings).profile
    found = explained(model, images, ExplainSettings((MethodName("cam"),), "all", 3))
    bias = model.module.head[2].bias.numpy()
    sums = found.sums["cam.raw"] / (4 * 3 * 5)
    np.testing.assert_allclose(sums + bias, found.logits, rtol=1e-5, atol=1e-5)
    importance = profile.importance["cam"]["all"].matrix()
    np.testing.assert_allclose(importance.sum(0), found.sums["cam.raw"].mean(0), rtol=1e-5)


def test_scaled_maps_of_volumes_are_enlarged_along_three_sides_and_then_scaled():
    model, images = deep_model(), volumes(4)
    profile = profile_shard(model, images, names(images), some_truth(4, 3), ProfileSettings(("grad-cam",))).profile
    limits = {"grad-cam": profile.limits("grad-cam")}
    methods = (MethodName("grad-cam"), MethodName("grad-cam", scaled=True))
    native = explained(model, images, ExplainSettings(methods[:1], "all", 3))
    settings = ExplainSettings(methods, "all", 3, map="input", scale="linear")
    found = explained(model, images, settings, limits=limits)
    raw = interpolate(
        torch.from_numpy(native.maps["grad-cam"]).float(), (8, 6, 10), mode="trilinear", align_corners=False
    )
    np.testing.assert_allclose(found.maps["grad-cam"], raw, rtol=5e-3, atol=2e-4)
    low, high = (limits["grad-cam"][:, side, None, None, None] for side in (0, 1))
    expected = 0.1 + 0.8 * (raw.numpy() - low) / (high - low)
    np.testing.assert_allclose(found.maps["s-grad-cam"], expected, rtol=1e-2, atol=1e-2)


def test_auto_finds_the_last_grid_of_a_3d_network_and_a_layer_of_another_rank_is_refused():
    model = deep_model()
    target = resolve_layer(model.module, "auto", torch.zeros(2, 1, 8, 6, 10))
    assert (target.name, target.features, target.native) == ("trunk", 8, (4, 3, 5))
    with pytest.raises(ModelError, match=r"puts out \[2, 8\]; expected \[batch, features, sides of a grid\]"):
        resolve_layer(model.module, "head.1", torch.zeros(2, 1, 8, 6, 10))


@pytest.mark.parametrize(
    ("sides", "patch", "tokens"), [((16, 224, 224), (2, 16, 16), 1568), ((8, 8, 8), (2, 4, 4), 16)]
)
def test_tokens_of_a_volume_are_not_laid_out_by_guess(sides, patch, tokens):
    """1568 would multiply up as 2 x 28 x 28 cubes, and 16 as 4 x 4 squares; neither is the grid."""

    class Tubelets(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv3d(1, 6, patch, patch)
            self.block = nn.Linear(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, inputs):
            return self.head(self.block(self.patches(inputs).flatten(2).transpose(1, 2)).mean(1))

    example = torch.zeros(1, 1, *sides)
    with pytest.raises(ModelError, match=rf"puts out \[1, {tokens}, 6\]"):
        resolve_layer(Tubelets(), "block", example)
    grid = tuple(side // part for side, part in zip(sides, patch, strict=True))
    assert resolve_layer(Tubelets(), "auto", example).native == grid


def test_video_networks_of_torchvision_can_be_explained():
    from torchvision.models.video import r3d_18

    torch.manual_seed(0)
    module = r3d_18(num_classes=3).eval().requires_grad_(False)
    preprocess = Preprocess(None, (8, 32, 32), 3, (0.5,) * 3, (0.25,) * 3)
    target = resolve_layer(module, "auto", torch.zeros(2, 3, 8, 32, 32))
    model = Classifier(module, target.name, ("a", "b", "c"), "one-label", preprocess, CPU, target.reshape)
    images = volumes(2, (8, 32, 32))
    found = explained(model, images, ExplainSettings((MethodName("cam"),), "all", 3))
    bias = module.fc.bias.numpy()
    cells = np.prod(target.native)
    np.testing.assert_allclose(found.sums["cam.raw"] / cells + bias, found.logits, rtol=1e-4, atol=1e-4)


def probabilities(inputs):
    return deep_model().module(inputs).softmax(1)


def full_mask(centre, sigmas, size):
    """A Gaussian of peak 1, voxel by voxel; centre and sigmas in voxels."""
    mask = torch.zeros(size)
    for place in product(*map(range, size)):
        distance = sum(((p + 0.5 - c) / s) ** 2 for p, c, s in zip(place, centre, sigmas, strict=True))
        mask[place] = exp(-distance / 2)
    return mask


def some_volume():
    return torch.randn(1, 8, 6, 10, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("places", [None, ((0.1, 0.5, 0.9), (0.3, 0.3, 0.25), (1.0, 0.0, 0.6))])
def test_light_and_shadow_of_a_volume_equal_a_loop_that_builds_each_mask(places):
    settings = Glas(points=2, axes=3, places=places)
    image, size = some_volume(), (8, 6, 10)
    looks = look(probabilities, image, DARK, settings, step=4)
    grid = places or list(product([0.25, 0.75], repeat=3))
    light, shadow = (values.flatten(0, -2) for values in (looks.light, looks.shadow))
    assert len(light) == len(grid)
    (whole,) = probabilities(image[None])
    for place, lit, shaded in zip(grid, light, shadow, strict=True):
        centre = [part * side for part, side in zip(place, size, strict=True)]
        masks = [full_mask(centre, [sigma * side / 15 for side in size], size) for sigma in (5.0, 3.0)]
        expected = probabilities((DARK + (image - DARK) * masks[0])[None])[0]
        torch.testing.assert_close(lit, expected, atol=1e-6, rtol=0)
        without = probabilities((DARK + (image - DARK) * (1 - masks[1]))[None])[0]
        torch.testing.assert_close(shaded, (whole - without).abs() + 1e-5, atol=1e-6, rtol=0)


@pytest.mark.parametrize("places", [None, ((0.1, 0.5, 0.9), (0.3, 0.3, 0.25), (1.0, 0.0, 0.6))])
def test_fusion_over_a_volume_equals_a_loop_over_voxels_and_points(places):
    settings, size = Glas(points=2, axes=3, spatial=2.0, places=places), (3, 4, 2)
    looks = look(probabilities, some_volume(), DARK, settings, step=64)
    grid = places or list(product([0.25, 0.75], repeat=3))
    scores = (looks.light * looks.shadow)[..., 1].flatten().tolist()
    expected = torch.zeros(size)
    for voxel in product(*map(range, size)):
        for place, score in zip(grid, scores, strict=True):
            parts = [(at + 0.5) / side - part for at, side, part in zip(voxel, size, place, strict=True)]
            expected[voxel] += exp(-sum((15 * part / 2.0) ** 2 for part in parts)) * score / len(grid)
    found = fuse(looks, torch.tensor([1]), size, settings)
    torch.testing.assert_close(found[0], expected, atol=1e-9, rtol=1e-4)


def test_places_at_the_grids_points_give_the_grids_map():
    """Of images too: a place is a part of each side."""
    image = torch.randn(3, 20, 28, generator=torch.Generator().manual_seed(1))
    module, dark = small().module, torch.zeros(3)
    grid = Glas(points=3)
    listed = replace(grid, places=tuple(product([1 / 6, 3 / 6, 5 / 6], repeat=2)))
    maps = [
        fuse(look(lambda x: module(x).softmax(1), image, dark, one, step=8), torch.arange(5), (20, 28), one)
        for one in (grid, listed)
    ]
    torch.testing.assert_close(maps[0], maps[1], atol=1e-7, rtol=1e-4)


def test_a_sigma_in_mm_is_one_in_voxels_of_that_size():
    image, spacing = some_volume(), (2.0, 0.5, 1.0)
    mm = Glas(points=2, axes=3, light=4.0, shadow=2.0, spatial=6.0, unit="mm")
    looks = look(probabilities, image, DARK, mm, step=8, spacing=spacing)
    for axis in range(3):
        assert mm.part(4.0, looks.seen, axis) == pytest.approx(4.0 / spacing[axis] / image.shape[1 + axis])
    alike = look(probabilities, image, DARK, replace(mm, unit="pixel"), step=8)
    same = look(probabilities, image, DARK, mm, step=8, spacing=(1.0, 1.0, 1.0))
    torch.testing.assert_close(same.light, alike.light)
    assert not torch.allclose(looks.light, alike.light)
    with pytest.raises(ValueError, match="unit: mm needs the spacing"):
        look(probabilities, image, DARK, mm, step=8)


def test_a_volume_without_a_spacing_fails_where_lengths_are_in_mm_and_the_others_do_not():
    model, images = deep_model(), volumes(3)
    rules = METHODS | {"glas": GlasMap("fusion", Glas(2, 4.0, 2.0, 6.0, "mm", axes=3))}
    settings = ExplainSettings((MethodName("glas"),), "all", 3, batch=2, rules=rules)
    known = (1.0, 1.0, 2.0)
    found = explained(model, images, settings, spacings=[known, None, known])
    assert list(found.failures) == [1]
    assert "spacing" in found.failures[1]
    assert np.isfinite(found.maps["glas"]).all((1, 2, 3, 4)).tolist() == [True, False, True]
    profile = profile_shard(
        model,
        images,
        names(images),
        some_truth(3, 3),
        ProfileSettings(("grad-cam",), rules=rules),
        spacings=[known, None, known],
    )
    assert (list(profile.failures), profile.profile.images) == ([1], 2)  # it shapes no scale either
    alone = explained(model, images[2:], settings, spacings=[known])
    np.testing.assert_array_equal(found.maps["glas"][2], alone.maps["glas"][0])


def test_the_spacing_of_the_input_follows_the_resize():
    preprocess = Preprocess((4, 6, 10), None, 1, (0.0,), (1.0,))
    assert preprocess.spacing((8, 6, 5, 1), (1.5, 1.0, 1.0)) == (3.0, 1.0, 0.5)
    cropped = Preprocess(16, 8, 1, (0.0,), (1.0,))
    assert cropped.spacing((32, 64), (0.2, 0.2)) == (0.4, 0.4)


class TwoBalls(nn.Module):
    """Class 1 is there if any of two places of the volume is bright (a noisy or)."""

    places = ((slice(2, 5),) * 3, (slice(13, 16),) * 3)

    def forward(self, inputs):
        missed = torch.ones(len(inputs))
        for place in self.places:
            missed = missed * (1 - 0.9 * inputs[:, 0, place[0], place[1], place[2]].mean((1, 2, 3)).clamp(0, 1))
        return torch.stack([missed, 1 - missed], 1)


def test_rglas_finds_both_of_two_places_in_a_volume():
    settings = Glas(points=6, light=2.0, shadow=2.0, spatial=2.0, axes=3)
    found = rglas(TwoBalls(), torch.ones(1, 18, 18, 18), torch.zeros(1), 1, Recursive(settings), step=64)
    for place in TwoBalls.places:
        assert found.saliency[place].mean() > 0.5
    assert found.saliency[8:10, 8:10, 8:10].mean() < 0.3
    assert all(later <= earlier for earlier, later in zip((6**3, *found.alive), found.alive, strict=False))


def test_a_coarse_look_at_a_volume_spends_the_forwards_it_says():
    settings = Glas(points=6, axes=3, coarse=2, share=0.25)
    batches = []

    def counted(inputs):
        batches.append(len(inputs))
        return probabilities(inputs)

    looks = look_for(counted, some_volume(), DARK, 1, settings, step=64)
    assert sum(batches) == settings.forwards == (2 * 8 + 1) + (2 * 2 * 27 + 1)
    assert looks.light.shape == (6, 6, 6, 3)


def test_the_passes_paint_glas_and_the_iterations_of_rglas_over_volumes():
    model, images = deep_model(), volumes(2)
    settings = Glas(points=2, axes=3)
    recursive = Recursive(settings, reach=0.0, iterations=3)  # ends after the first, where no point is left
    rules = METHODS | {"glas": GlasMap("fusion", settings), "rglas": RglasMap(recursive)}
    methods = (MethodName("glas"), MethodName("rglas"))
    found = explained(model, images, ExplainSettings(methods, (2,), 1, map="input", rules=rules))
    assert found.maps["rglas-steps"].shape == (2, 1, 3, 8, 6, 10)
    dark = model.preprocess.dark
    for index, image in enumerate(images):
        (batch,) = model.preprocess([image], CPU)
        search = rglas(probabilities, batch, dark, 2, recursive, step=32)
        np.testing.assert_allclose(found.maps["rglas"][index, 0], search.saliency, rtol=2e-3, atol=1e-3)
        count = len(search.steps)
        np.testing.assert_allclose(found.maps["rglas-steps"][index, 0, :count], search.steps, rtol=2e-3, atol=1e-3)
        assert count == 1
        assert np.isnan(found.maps["rglas-steps"][index, 0, count:]).all()
        expected = fuse(look(probabilities, batch, dark, settings, step=32), torch.tensor([2]), (8, 6, 10), settings)
        np.testing.assert_allclose(found.maps["glas"][index], expected, rtol=2e-3, atol=1e-7)


def test_a_volume_is_enlarged_like_torch_does_it_and_cropped_at_its_middle():
    volume = volumes(1, (4, 5, 6))[0]
    whole = torch.from_numpy(volume).permute(3, 0, 1, 2)[None]
    enlarged = Preprocess((8, 9, 7), None, 1, (0.0,), (1.0,)).picture([volume], CPU)
    expected = interpolate(whole, (8, 9, 7), mode="trilinear", align_corners=False)
    torch.testing.assert_close(enlarged, expected, atol=1e-5, rtol=0)
    cropped = Preprocess(None, (2, 7, 4), 1, (0.0,), (1.0,)).picture([volume], CPU)
    torch.testing.assert_close(cropped[0, 0, :, 1:6], whole[0, 0, 1:3, :, 1:5])
    assert not cropped[0, 0, :, 0].any()
    assert not cropped[0, 0, :, 6].any()


def test_a_volume_made_smaller_keeps_its_mean_and_loses_what_is_too_fine_for_it():
    fine = np.indices((16, 16, 16)).sum(0) % 2  # a checkerboard of single voxels
    volume = fine[..., None].astype(np.float32)
    smaller = Preprocess((4, 4, 4), None, 1, (0.0,), (1.0,)).picture([volume], CPU)
    torch.testing.assert_close(smaller, torch.full((1, 1, 4, 4, 4), 0.5), atol=0.02, rtol=0)


@pytest.mark.parametrize(("resize", "crop"), [((4, 4), (4, 4, 4)), (8, (4, 4, 4)), (None, (4, 4, 4, 4))])
def test_sizes_of_two_and_three_sides_do_not_go_together(resize, crop):
    with pytest.raises(ValueError, match="two sides of images, or three of volumes"):
        Preprocess(resize, crop, 1, (0.0,), (1.0,))


def test_an_image_is_refused_where_a_volume_is_expected_and_the_other_way_round():
    with pytest.raises(ValueError, match=r"expected \[d,h,w,1\]"):
        deep_model().preprocess(slices(1), CPU)
    with pytest.raises(ValueError, match=r"expected \[h,w\] or \[h,w,3\]"):
        small().preprocess(volumes(1), CPU)


def test_modes_and_hooks_are_what_they_were_after_a_volume():
    model = deep_model()
    model.module.train()
    with capturing(model) as capture:
        capture(model.preprocess(volumes(2), CPU))
    assert model.module.training
    assert not model.module.trunk._forward_hooks


def test_one_slice_goes_through_both_networks_to_the_same_logits():
    """Without this the tests above would compare nothing."""
    flat, deep = pair(deep_head)
    image = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(deep.module(image[:, :, None]), flat.module(image))
