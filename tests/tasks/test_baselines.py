"""Gradient, occlusion, RISE, LIME and meaningful perturbation, against libraries, plain loops and planted evidence."""

import itertools
from dataclasses import replace
from math import ceil, exp, sqrt

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from storage.errors import ModelError
from tasks.baselines import InputGradient, LimeMap, MeaningfulPerturbation, OcclusionMap, RiseMap
from tasks.cams.names import BASE_METHODS, FEATURE_METHODS, GRADIENT_METHODS, UNSCALED, MethodName
from tasks.capture import capturing
from tasks.explain import ExplainSettings, explain_shard
from tasks.methods import METHODS
from tasks.profile import ProfileSettings, Truth, profile_shard
from tests.tasks.small_classifiers import (
    classifier,
    deep_head,
    evidence_of,
    names,
    pictures,
    pixels,
    small,
    some_truth,
)
from tests.tasks.test_capture import state

FIVE = ("occlusion", "rise", "lime", "gradient", "meaningful-perturbation")
QUICK = {
    "occlusion": OcclusionMap(4, 2),
    "rise": RiseMap(20, 3),
    "lime": LimeMap(30, 3),
    "gradient": InputGradient(),
    "meaningful-perturbation": MeaningfulPerturbation(4, 5),
}
DARK = -2.0  # black, after a mean of 0.5 and a deviation of 0.25
EVERY = torch.arange(5)


def saliency(method, model, images, size=(16, 16), targets=EVERY, step=4):
    with evidence_of(model, images, targets.to(model.device), step=step) as evidence:
        return method.saliency(evidence, size).cpu()


def explained(model, images, methods=FIVE, targets="all", columns=5, **options):
    settings = ExplainSettings(tuple(map(MethodName, methods)), targets, columns, rules=QUICK, **options)
    truth = some_truth(len(images))
    return explain_shard(model, images, names(images), truth, settings, limits={}, masks={})


def probability(model, inputs):
    with torch.no_grad():
        return model.probabilities(model.module(inputs))


class OfTheImage(nn.Module):
    """Logits from brightness in [0, 1], by a function that a test gives; its target layer is the brightness."""

    def __init__(self, logits):
        super().__init__()
        self.trunk = nn.Identity()
        self.logits = logits

    def forward(self, images):
        return self.logits(self.trunk(images).mean(1) * 0.25 + 0.5)


def of_the_image(logits, classes=2):
    return classifier(OfTheImage(logits), "trunk", classes=classes)


def as_logits(certain):
    """Logits whose softmax is (p, 1 - p)."""
    return torch.stack([certain.log(), (-certain).log1p()], 1)


# Occlusion


@pytest.mark.parametrize("task", ["one-label", "multi-label"])
@pytest.mark.parametrize(("cells", "window", "stride"), [(8, 2, 1), (4, 3, 2), (16, 5, 3), (4, 4, 1)])
def test_occlusion_is_the_mean_drop_over_the_dark_squares_that_hide_a_pixel(cells, window, stride, task, device):
    model, images = small(deep_head(), task=task, device=device), pictures(2)
    found = saliency(OcclusionMap(cells, window, stride), model, images)
    side, starts = 16 // cells, range(0, cells - window + stride, stride)
    for index, image in enumerate(pixels(model, images)):
        total, hidden = torch.zeros(5, 16, 16), torch.zeros(16, 16)
        whole = probability(model, image[None])[0].cpu()
        for top, left in itertools.product(starts, starts):
            here = (slice(top * side, (top + window) * side), slice(left * side, (left + window) * side))
            dark = image.clone()
            dark[(slice(None), *here)] = DARK
            total[(slice(None), *here)] += (whole - probability(model, dark[None])[0].cpu())[:, None, None]
            hidden[here] += 1
        torch.testing.assert_close(found[index], total / hidden, rtol=1e-4, atol=1e-6)


def test_occlusion_is_what_captum_finds_on_the_pixels():
    model, images = small(deep_head()), pictures(1)
    found = saliency(OcclusionMap(8, 3, 1), model, images)
    expected = captum.attr.Occlusion(lambda inputs: probability(model, inputs)).attribute(
        pixels(model, images), sliding_window_shapes=(3, 6, 6), strides=(3, 2, 2), baselines=DARK, target=3
    )
    torch.testing.assert_close(found[0, 3], expected[0, 0], rtol=1e-4, atol=1e-6)


# Gradient


@pytest.mark.parametrize("size", [(16, 16), (4, 4)])
def test_the_gradient_is_the_largest_of_the_channels_and_that_of_captum(size, device):
    model, images = small(deep_head(), device=device), pictures(3)
    found = saliency(InputGradient(), model, images, size)
    for target in range(5):
        inputs = pixels(model, images).requires_grad_()
        (expected,) = torch.autograd.grad(model.module(inputs)[:, target].sum(), inputs)
        expected = interpolate(expected.abs().amax(1, keepdim=True), size, mode="area")[:, 0].cpu()
        torch.testing.assert_close(found[:, target], expected, rtol=1e-4, atol=1e-6)
        theirs = captum.attr.Saliency(model.module).attribute(inputs, target=target, abs=True).amax(1, keepdim=True)
        theirs = interpolate(theirs, size, mode="area")[:, 0].cpu()
        torch.testing.assert_close(found[:, target], theirs, rtol=1e-4, atol=1e-6)


def test_a_first_layer_that_works_in_place_can_be_differentiated_and_leaves_the_input_alone():
    model = small(deep_head())
    model.module.trunk.insert(0, nn.ReLU(inplace=True))
    inputs = pixels(model, pictures(2)).contiguous(memory_format=torch.channels_last)
    before = inputs.clone()
    with capturing(model) as capture:
        inputs.requires_grad_()
        (found,) = torch.autograd.grad(capture.differentiable(inputs).sum(), inputs)
    assert torch.equal(inputs.detach(), before)
    assert torch.equal(found != 0, before > 0)


# RISE


def literal_rise(model, image, name, method, target):
    """Mask by mask, as the paper's section 3.2 tells it."""
    generator = probes_generator(name)
    grids = [(torch.rand(method.cells, method.cells, generator=generator) < method.share) for _ in range(method.masks)]
    cell = ceil(16 / method.cells)
    shifts = (
        torch.randint(cell, (method.masks,), generator=generator),
        torch.randint(cell, (method.masks,), generator=generator),
    )
    total = torch.zeros(16, 16)
    for grid, down, right in zip(grids, *shifts, strict=True):
        whole = interpolate(grid[None, None].float(), ((method.cells + 1) * cell,) * 2, mode="bilinear")[0, 0]
        mask = whole[down : down + 16, right : right + 16]
        total += probability(model, DARK + (image - DARK) * mask)[0, target] * mask
    return total / (method.share * method.masks)


def probes_generator(name):
    with evidence_of(small(), pictures(1), EVERY) as evidence:
        evidence.probes.names = [name]
        return evidence.probes.generator("rise", 0)


@pytest.mark.parametrize("method", [RiseMap(30, 3), RiseMap(17, 7, 0.3)])
def test_rise_is_the_literal_reading_of_the_paper(method):
    model, images = small(deep_head()), pictures(2)
    found = saliency(method, model, images, step=7)
    for index, image in enumerate(pixels(model, images)):
        expected = literal_rise(model, image[None], names(images)[index], method, 2)
        torch.testing.assert_close(found[index, 2], expected, rtol=1e-4, atol=1e-6)


def test_the_map_of_rise_comes_near_its_expectation_over_all_masks():
    white = [np.full((16, 16, 3), 255, np.uint8)]
    model = of_the_image(lambda brightness: as_logits(0.1 + 0.8 * brightness[:, 2:6, 9:13].mean((1, 2))))
    grids = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).view(16, 1, 2, 2)
    whole = interpolate(grids, (24, 24), mode="bilinear")[:, 0]
    masks = torch.cat([whole[:, top : top + 16, left : left + 16] for top in range(8) for left in range(8)])
    answers = 0.1 + 0.8 * masks[:, 2:6, 9:13].mean((1, 2))
    terms = answers[:, None, None] * masks / 0.5
    found = saliency(RiseMap(4000, 2), model, white, targets=torch.tensor([0]), step=500)[0, 0]
    error = (found - terms.mean(0)) / (terms.std(0) / sqrt(4000))
    assert error.abs().max() < 5
    assert found[4, 11] > 1.2 * found[12, 3]


def test_masks_follow_from_the_image_and_not_from_its_batch():
    model, images = small(), pictures(3)
    method = RiseMap(9, 3)
    with evidence_of(model, images, EVERY, step=4) as evidence:
        together = torch.cat(list(method.drawn(evidence.probes, 2)))
    with evidence_of(model, images[2:], EVERY, step=9) as evidence:
        alone = torch.cat(list(method.drawn(evidence.probes, 0)))
    assert torch.equal(together, alone)
    assert together.shape == (9, 1, 16, 16)
    assert 0 <= together.min() < together.max() <= 1


# LIME


def test_lime_finds_the_coefficients_of_a_model_that_is_linear_in_the_cells():
    weights = torch.linspace(-0.02, 0.03, 16).view(4, 4)
    model = of_the_image(
        lambda brightness: as_logits(
            0.5 + (interpolate(brightness[:, None], (4, 4), mode="area") * weights).sum((1, 2, 3))
        )
    )
    white = [np.full((16, 16, 3), 255, np.uint8)]
    found = saliency(LimeMap(400, 4, ridge=1e-3), model, white, size=(4, 4), targets=torch.arange(2))
    torch.testing.assert_close(found[0, 0], weights, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[0, 1], -weights, rtol=1e-3, atol=1e-4)
    blocks = saliency(LimeMap(400, 4, ridge=1e-3), model, white, targets=torch.arange(2))
    assert torch.equal(blocks[0, 0], found[0, 0].repeat_interleave(4, 0).repeat_interleave(4, 1))


def test_lime_is_the_weighted_ridge_regression_on_the_cells_shown():
    model, images, method = small(deep_head()), pictures(1), LimeMap(60, 3, 0.4, 2.0)
    found = saliency(method, model, images, size=(3, 3))
    with evidence_of(model, images, EVERY) as evidence:
        shown, answers = (values.double().numpy() for values in method._answers(evidence.probes, 0))
    distances = [1 - float(np.dot(row, np.ones(9)) / max(sqrt(row.sum()) * 3, 1e-9)) for row in shown]
    kernel = np.array([exp(-(distance**2) / (2 * 0.4**2)) for distance in distances])
    centred = shown - np.average(shown, axis=0, weights=kernel)
    for target in range(5):
        levels = answers[:, target] - np.average(answers[:, target], weights=kernel)
        expected = np.linalg.solve(centred.T * kernel @ centred + 2 * np.eye(9), centred.T * kernel @ levels)
        np.testing.assert_allclose(found[0, target].flatten(), expected, rtol=1e-3, atol=1e-6)


# Meaningful perturbation


@pytest.mark.parametrize("place", [(0, 0), (6, 10)])
def test_meaningful_perturbation_finds_the_patch_that_alone_drives_the_class(place):
    top, left = place

    def logits(brightness):
        patch = brightness[:, top : top + 6, left : left + 6].mean((1, 2))
        return torch.stack([12 * patch - 3, torch.zeros_like(patch)], 1)

    images = [np.full((16, 16, 3), 200, np.uint8)] * 2
    found = saliency(
        MeaningfulPerturbation(8, 100, l1=1e-3, tv=1e-4), of_the_image(logits), images, targets=torch.tensor([0])
    )
    inside, around = torch.zeros(2, 16, 16, dtype=torch.bool)
    inside[top : top + 6, left : left + 6] = True
    around[max(top - 3, 0) : top + 9, max(left - 3, 0) : left + 9] = True  # a cell and half of the next
    assert found.shape == (2, 1, 16, 16)
    assert found[0, 0][inside].mean() > 0.5
    assert found[0, 0][~around].max() < 0.01
    assert torch.equal(found[0], found[1])


def test_differences_between_neighbouring_cells_have_their_price():
    noise = torch.randn(16, 16, generator=torch.Generator().manual_seed(4))

    def logits(brightness):
        return torch.stack([(brightness * noise).sum((1, 2)) / 8, torch.zeros(len(brightness))], 1)

    rough = []
    for price in (0.0, 10.0):
        method = MeaningfulPerturbation(8, 40, l1=1e-3, tv=price)
        found = saliency(method, of_the_image(logits), pictures(1), targets=torch.tensor([0]))[0, 0]
        rough.append(found.diff(dim=0).abs().sum() + found.diff(dim=1).abs().sum())
    assert rough[1] < rough[0] / 3


def test_a_mask_that_deletes_nothing_that_matters_is_given_back():
    model = of_the_image(lambda brightness: torch.stack([brightness[:, 0, 0], torch.ones(len(brightness))], 1) * 0)
    found = saliency(MeaningfulPerturbation(4, 30), model, pictures(1), targets=torch.arange(2))
    assert torch.equal(found, torch.zeros_like(found))


# All five


def test_all_five_go_through_the_pass_that_draws_maps():
    model, images = small(deep_head()), pictures(4)
    found = explained(model, images, targets="predicted", columns=1, batch=3)
    assert not found.failures
    for name in FIVE:
        assert found.maps[name].shape == (4, 1, 4, 4)
        assert np.isfinite(found.maps[name]).all()
        assert found.maps[name].std() > 0
        assert np.isfinite(found.sums[f"{name}.raw"]).all()


@pytest.mark.parametrize("name", FIVE)
def test_a_batch_of_one_gives_the_maps_of_a_batch_of_three(name):
    model, images = small(deep_head()), pictures(3)
    together = explained(model, images, (name,), batch=3, map="input").maps[name].astype(np.float32)
    single = explained(model, images[::-1], (name,), batch=1, map="input").maps[name].astype(np.float32)
    np.testing.assert_allclose(single[::-1], together, rtol=2e-3, atol=1e-3 * np.abs(together).max())


@pytest.mark.parametrize("name", FIVE)
def test_asking_for_fewer_classes_gives_the_same_maps_of_them(name):
    model, images = small(deep_head()), pictures(3)
    every = explained(model, images, (name,)).maps[name].astype(np.float32)
    few = explained(model, images, (name,), targets=(3, 1), columns=2).maps[name].astype(np.float32)
    np.testing.assert_allclose(few, every[:, [3, 1]], rtol=2e-3, atol=1e-3 * np.abs(every).max())


@pytest.mark.parametrize("name", FIVE)
def test_what_a_method_says_it_costs_is_what_it_forwards(name):
    model, images = small(deep_head()), pictures(2)
    inputs = []
    with evidence_of(model, images, EVERY, step=7) as evidence:
        hook = model.module.register_forward_pre_hook(lambda _, batch: inputs.append(len(batch[0])))
        QUICK[name].saliency(evidence, (4, 4))
        QUICK[name].saliency(evidence, (16, 16)) if not QUICK[name].by_class else None
        hook.remove()
    said = QUICK[name].forwards(12, "autograd")
    passes = {"gradient": 2 * (1 + 5), "meaningful-perturbation": 2 * sum(inputs)}
    if QUICK[name].by_class:  # backward passes are counted too; of the gradient classes share the forward
        assert passes[name] <= 2 * 5 * said
        assert sum(inputs) == (2 if name == "gradient" else 2 * 5 * said // 2)
    else:
        assert sum(inputs) == 2 * said
    assert max(inputs) <= 7


@pytest.mark.parametrize("name", FIVE)
def test_hooks_modes_and_gradients_are_as_they_were_also_after_an_exception(name):
    model, images = small(deep_head()), pictures(2)
    model.module.train()
    model.module.trunk[0].weight.requires_grad_(True)
    before = state(model.module)
    explained(model, images, (name,))
    assert state(model.module) == before
    calls = itertools.count()

    def fail(_module, _inputs):
        if next(calls) == 1:  # after the forward that all methods share
            raise ZeroDivisionError

    hook = model.module.head.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        explained(model, images, (name,))
    hook.remove()
    assert state(model.module) == before


@pytest.mark.parametrize("name", FIVE)
def test_a_classifier_that_ignores_its_input_has_a_flat_map(name):
    model = of_the_image(
        lambda brightness: brightness.mean((1, 2))[:, None] * torch.zeros(2) + torch.tensor([1.0, 2.0])
    )
    found = saliency(QUICK[name], model, pictures(2), targets=torch.arange(2))
    if name == "rise":  # flat but for the draw: p times the mean of the masks over their expectation
        certain = torch.tensor([1.0, 2.0]).softmax(0)
        relative = found / certain[:, None, None]
        torch.testing.assert_close(relative[:, 0], relative[:, 1])
        assert (relative - 1).abs().max() < 5 * sqrt(1 / 20)
    else:
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-4 if "perturb" in name else 1e-7)


@pytest.mark.parametrize("name", FIVE)
def test_a_column_without_a_class_has_no_map_and_an_image_without_any_is_no_fault(name):
    model, images = small(deep_head()), pictures(2)
    settings = ExplainSettings((MethodName(name),), "labelled", 2, rules=QUICK, batch=1)
    truth = Truth(np.array([True, False]), np.eye(5, dtype=bool)[[1, 2]])
    found = explain_shard(model, images, names(images), truth, settings, limits={}, masks={})
    assert not found.failures
    assert np.isfinite(found.maps[name]).all((2, 3)).tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize("name", ["lime", "meaningful-perturbation"])
def test_nothing_is_fitted_for_a_column_without_a_class(name):
    model, images = small(deep_head()), pictures(2)
    with evidence_of(model, images, torch.tensor([[1, 0], [0, 2]])) as evidence:
        absent = torch.tensor([[False, True], [True, False]])
        found = QUICK[name].saliency(replace(evidence, absent=absent), (4, 4))
    assert (found == 0).all(3).all(2).tolist() == absent.tolist()


@pytest.mark.parametrize("name", FIVE)
def test_features_cannot_be_selected_for_a_map_without_features(name):
    with pytest.raises(ValueError, match="no features to select"):
        MethodName.parse(f"fs-{name}")
    assert name not in FEATURE_METHODS
    assert name in BASE_METHODS


@pytest.mark.parametrize(
    ("name", "why"),
    [("s-lime", "coefficients of a model fitted to one image"), ("s-meaningful-perturbation", "a mask in")],
)
def test_a_map_that_is_its_images_own_has_no_common_scale(name, why):
    with pytest.raises(ValueError, match=f"{why}.*no common scale"):
        MethodName.parse(name)


@pytest.mark.parametrize("name", [name for name in FIVE if name not in UNSCALED])
def test_the_others_are_profiled_and_put_on_the_scale_of_the_archive(name):
    model, images = small(deep_head()), pictures(4)
    assert str(MethodName.parse(f"s-{name}")) == f"s-{name}"
    settings = ProfileSettings((name,), rules={**METHODS, **QUICK})
    profile = profile_shard(model, images, names(images), some_truth(4), settings).profile
    assert list(profile.importance) == []
    scaled = ExplainSettings((MethodName(name, scaled=True),), "all", 5, rules=QUICK)
    limits = {name: profile.limits(name)}
    found = explain_shard(model, images, names(images), some_truth(4), scaled, limits=limits, masks={})
    low, high = (np.quantile(found.maps[f"s-{name}"].astype(np.float64), q, axis=(0, 2, 3)) for q in (0.1, 0.9))
    np.testing.assert_allclose(low, 0.1, atol=0.06)
    np.testing.assert_allclose(high, 0.9, atol=0.06)


class Ungraded(nn.Module):
    """A trunk that keeps no graph, as feature extractors often are wrapped."""

    def __init__(self):
        super().__init__()
        self.inner = small(deep_head()).module
        self.trunk = nn.Identity()

    def forward(self, images):
        with torch.no_grad():
            features = self.inner.trunk(images)
        return self.inner.head(self.trunk(features))


def test_a_trunk_without_a_graph_has_cams_and_no_gradient_of_the_input():
    model = classifier(Ungraded(), "trunk")
    assert np.isfinite(explained(model, pictures(1), ("occlusion",)).maps["occlusion"]).all()
    for name in GRADIENT_METHODS:
        with pytest.raises(ModelError, match="no gradient with respect to the input"):
            explained(model, pictures(1), (name,))


def test_bf16_gives_gradients_near_those_of_float32():
    model, images = small(deep_head()), pictures(1)
    exact = explained(model, images, ("gradient",)).maps["gradient"].astype(np.float32)
    rough = explained(model, images, ("gradient",), precision="bf16").maps["gradient"].astype(np.float32)
    np.testing.assert_allclose(rough, exact, rtol=0.2, atol=0.05 * exact.max())
    assert not np.array_equal(rough, exact)


def test_the_graph_is_of_the_inputs_and_nothing_stays_behind():
    model = small(deep_head())
    with capturing(model) as capture:
        inputs = pixels(model, pictures(2)).requires_grad_()
        logits = capture.differentiable(inputs)
        torch.autograd.grad(logits.sum(), inputs)
        assert capture(inputs.detach()).logits.requires_grad is False
    assert inputs.grad is None
    torch.testing.assert_close(logits.detach(), model.module(inputs.detach()))
