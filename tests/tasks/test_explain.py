from dataclasses import replace

import numpy as np
import pytest
import torch

from storage.errors import ModelError
from tasks.cams.names import BASE_METHODS, FEATURE_METHODS, UNSCALED, MethodName
from tasks.cams.scaling import CommonScale
from tasks.consistency import consistency
from tasks.explain import ExplainSettings, explain_shard
from tasks.profile import ProfileSettings, Truth, profile_shard
from tests.tasks.small_classifiers import (
    QUICK_METHODS,
    deep_head,
    in_place_relu_head,
    names,
    pictures,
    pixels,
    pooled_head,
    small,
    some_truth,
)
from tests.tasks.test_profile import Fragile, SmallMemory

COUNT = 5
EVERY_METHOD = tuple(
    MethodName(base, selected, scaled)
    for base in BASE_METHODS
    for selected in (False, True)
    for scaled in (False, True)
    if (base in FEATURE_METHODS or not selected) and (base not in UNSCALED or not scaled)
)
HEADS = [pooled_head, in_place_relu_head, deep_head]


def methods(*names):
    return tuple(MethodName.parse(name) for name in names)


def explain(model, images, truth, settings, **profiled):
    """Explain with the limits and masks of the images' own profile."""
    bases = tuple(dict.fromkeys(method.base for method in settings.methods))
    profile = profile_shard(model, images, names(images), truth, ProfileSettings(bases, rules=QUICK_METHODS)).profile
    limits = {base: profile.limits(base) for base in bases if base not in UNSCALED}
    masks = {base: profile.mask(base, share=0.3) for base in bases if base in FEATURE_METHODS}
    profiled = {"limits": limits, "masks": masks} | profiled
    settings = replace(settings, rules=QUICK_METHODS)
    return (
        explain_shard(model, images, names(images), truth, settings, **profiled),
        profiled["limits"],
        profiled["masks"],
    )


def grad_cam(model, image, target, mask=None):
    """One map with plain autograd."""
    with torch.no_grad():
        activation = model.module.trunk(pixels(model, [image])).detach()
    leaf = activation.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.module.head(leaf.clone())[0, target], leaf)
    weighted = gradient.mean((2, 3), keepdim=True) * activation
    return (weighted if mask is None else weighted[:, mask]).sum(1)[0].cpu().numpy()


def logits_of(model, images):
    with torch.no_grad():
        return model.module(pixels(model, images)).cpu().numpy()


@pytest.fixture(params=HEADS)
def model(request, device):
    return small(request.param(), device=device)


def test_every_map_is_the_one_of_its_own_image_and_class(model):
    images, truth = pictures(COUNT), some_truth(COUNT)
    settings = ExplainSettings(methods("grad-cam", "fs-grad-cam"), targets="all", columns=5, batch=3)
    explained, _, masks = explain(model, images, truth, settings)
    for row, image in enumerate(images):
        for target in range(5):
            expected = grad_cam(model, image, target)
            chosen = grad_cam(model, image, target, masks["grad-cam"][:, target])
            np.testing.assert_allclose(explained.maps["grad-cam"][row, target], expected, rtol=2e-3, atol=1e-5)
            np.testing.assert_allclose(explained.maps["fs-grad-cam"][row, target], chosen, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("targets", "columns"), [("predicted", 1), ((4, 1), 2), ("labelled", 3)])
def test_asking_for_fewer_classes_gives_the_same_maps_of_them(model, targets, columns):
    images, truth = pictures(COUNT), some_truth(COUNT)
    every, limits, masks = explain(model, images, truth, ExplainSettings(EVERY_METHOD, "all", 5))
    few, _, _ = explain(
        model, images, truth, ExplainSettings(EVERY_METHOD, targets, columns), limits=limits, masks=masks
    )
    assert few.classes.shape == (COUNT, columns)
    rows = np.arange(COUNT)[:, None]
    some = few.classes >= 0
    for name, maps in few.maps.items():
        expected = every.maps[name][rows, few.classes].astype(np.float32)
        np.testing.assert_allclose(maps[some].astype(np.float32), expected[some], rtol=2e-3, atol=2e-4, err_msg=name)
        assert np.isnan(maps[~some]).all()
    for name, sums in few.sums.items():
        expected = every.sums[name][rows, few.classes]
        np.testing.assert_allclose(sums[some], expected[some], rtol=1e-3, atol=1e-4, err_msg=name)
        assert np.isnan(sums[~some]).all()


def test_targets_are_the_predicted_the_listed_or_the_labelled_classes():
    model, images = small(), pictures(COUNT)
    truth = Truth(np.arange(COUNT) != 1, np.zeros((COUNT, 5), bool))
    truth.positive[0, [1, 4]] = True
    truth.positive[1, 2] = True  # of an image that is not labelled: not to be looked at
    truth.positive[2, 3] = True
    asked = {"predicted": 1, (4, 0): 2, "labelled": 2, "all": 5}
    found = {
        targets: explain(model, images, truth, ExplainSettings(methods("grad-cam"), targets, columns))[0].classes
        for targets, columns in asked.items()
    }
    assert found["predicted"][:, 0].tolist() == logits_of(model, images).argmax(1).tolist()
    assert found[(4, 0)].tolist() == [[4, 0]] * COUNT
    assert found["labelled"].tolist() == [[1, 4], [-1, -1], [3, -1], *[[-1, -1]] * (COUNT - 3)]
    assert found["all"].tolist() == [[0, 1, 2, 3, 4]] * COUNT


@pytest.mark.parametrize("scale", ["tanh", "linear"])
def test_scaled_maps_are_the_common_scale_of_the_resized_signed_map(model, scale):
    images, truth = pictures(COUNT), some_truth(COUNT)
    settings = ExplainSettings(methods("grad-cam", "s-grad-cam"), "all", 5, map=(9, 7), scale=scale)
    explained, limits, _ = explain(model, images, truth, settings)
    common = CommonScale.between(limits["grad-cam"], model.classes, layer="trunk", kind=scale)
    raw = torch.from_numpy(explained.maps["grad-cam"].astype(np.float32))
    expected = common.apply(raw, torch.arange(5)).numpy()
    np.testing.assert_allclose(explained.maps["s-grad-cam"].astype(np.float32), expected, atol=5e-3)
    assert (explained.maps["grad-cam"] < 0).any()


def test_a_tenth_of_the_archives_cells_lies_below_a_tenth():
    model, images = small(), pictures(40)
    explained, _, _ = explain(model, images, some_truth(40), ExplainSettings(methods("s-grad-cam"), "all", 5))
    cells = explained.maps["s-grad-cam"].astype(np.float32)
    assert np.mean(cells < 0.1) == pytest.approx(0.1, abs=0.02)
    assert np.mean(cells > 0.9) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(("size", "expected"), [("native", (4, 4)), ("input", (16, 16)), ((5, 9), (5, 9))])
def test_maps_have_the_size_asked_for(size, expected):
    settings = ExplainSettings(methods("grad-cam"), map=size)
    explained, _, _ = explain(small(), pictures(3), some_truth(3), settings)
    assert explained.maps["grad-cam"].shape == (3, 1, *expected)


def test_sums_are_those_of_the_maps_on_each_scale():
    model, images, truth = small(), pictures(COUNT), some_truth(COUNT)
    wanted = methods("grad-cam", "s-grad-cam", "fs-s-xgrad-cam")
    explained, _, _ = explain(model, images, truth, ExplainSettings(wanted, "all", 5))
    assert sorted(explained.sums) == sorted(
        f"{variant}.{scale}"
        for variant in ("grad-cam", "fs-xgrad-cam")
        for scale in ("raw", "individual", "linear", "tanh")
    )
    for name, stored in (("grad-cam.raw", "grad-cam"), ("grad-cam.tanh", "s-grad-cam")):
        expected = explained.maps[stored].astype(np.float64).sum((2, 3))
        np.testing.assert_allclose(explained.sums[name], expected, atol=0.02)
    raw = explained.maps["grad-cam"].astype(np.float64).clip(0)
    low, high = raw.min((2, 3), keepdims=True), raw.max((2, 3), keepdims=True)
    expected = np.where(high > low, (raw - low) / np.where(high > low, high - low, 1), 0).sum((2, 3))
    np.testing.assert_allclose(explained.sums["grad-cam.individual"], expected, atol=0.05)


def test_raw_sums_under_a_pooled_linear_head_follow_the_logits_perfectly():
    model, images = small(), pictures(20)
    explained, _, _ = explain(model, images, some_truth(20), ExplainSettings(methods("grad-cam"), "all", 5))
    bias = model.module.head[2].bias.numpy()
    np.testing.assert_allclose(explained.sums["grad-cam.raw"] + bias, explained.logits, rtol=1e-4, atol=1e-5)
    for column in range(5):
        found = consistency(explained.logits[:, column], explained.sums["grad-cam.linear"][:, column])
        assert found.pearson == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("task", ["one-label", "multi-label"])
def test_logits_and_probabilities_are_the_classifiers(task):
    model, images = small(task=task), pictures(COUNT)
    explained, _, _ = explain(model, images, some_truth(COUNT), ExplainSettings(methods("grad-cam")))
    logits = logits_of(model, images)
    np.testing.assert_allclose(explained.logits, logits, rtol=1e-5, atol=1e-5)
    powers = np.exp(logits)
    expected = powers / (1 + powers) if task == "multi-label" else powers / powers.sum(1, keepdims=True)
    np.testing.assert_allclose(explained.probabilities, expected, rtol=1e-4)


def test_a_class_without_known_features_has_no_selected_map():
    model, images, truth = small(), pictures(4), some_truth(4)
    masks = {"grad-cam": np.tile([True, True, False, True, True], (12, 1))}
    settings = ExplainSettings(methods("grad-cam", "fs-grad-cam"), "all", 5)
    explained, _, _ = explain(model, images, truth, settings, masks=masks)
    missing = np.isnan(explained.maps["fs-grad-cam"]).all((0, 2, 3))
    assert missing.tolist() == [False, False, True, False, False]
    assert np.isnan(explained.sums["fs-grad-cam.raw"]).all(0).tolist() == missing.tolist()
    assert np.isfinite(explained.maps["grad-cam"]).all()


def test_another_batch_changes_next_to_nothing(model):
    images, truth = pictures(COUNT), some_truth(COUNT)
    settings = ExplainSettings(EVERY_METHOD, "all", 5)
    reference, limits, masks = explain(model, images, truth, settings)
    for batch in (1, 3):
        other, _, _ = explain(model, images, truth, replace(settings, batch=batch), limits=limits, masks=masks)
        for name, sums in reference.sums.items():
            if name.endswith((".raw", ".tanh")):
                scale = np.nanmax(np.abs(sums))
                np.testing.assert_allclose(other.sums[name], sums, rtol=1e-4, atol=1e-4 * scale, err_msg=name)
        np.testing.assert_allclose(other.logits, reference.logits, rtol=1e-5, atol=1e-5)


def test_the_same_shard_gives_the_same_bits(model):
    images, truth = pictures(COUNT), some_truth(COUNT)
    settings = ExplainSettings(EVERY_METHOD, "all", 5, batch=3)
    first, limits, masks = explain(model, images, truth, settings)
    second, _, _ = explain(model, images, truth, settings, limits=limits, masks=masks)
    for name, maps in first.maps.items():
        np.testing.assert_array_equal(maps, second.maps[name])
    for name, sums in first.sums.items():
        np.testing.assert_array_equal(sums, second.sums[name])


def test_images_without_finite_numbers_have_a_reason_and_no_maps():
    model, images, truth = small(), pictures(COUNT), some_truth(COUNT)
    settings = ExplainSettings(methods("s-grad-cam"), batch=3)
    expected, limits, masks = explain(model, images, truth, settings)
    images[4] = np.zeros_like(images[4])
    fragile = replace(model, module=Fragile(model.module))
    explained = explain_shard(fragile, images, names(images), truth, settings, limits=limits, masks=masks)
    assert explained.failures == {4: "the classifier's activation is not finite for this image"}
    assert explained.classes[4].tolist() == [-1]
    assert np.isnan(explained.maps["s-grad-cam"][4]).all()
    assert np.isnan(explained.logits[4]).all()
    others = np.arange(COUNT) != 4
    np.testing.assert_allclose(explained.maps["s-grad-cam"][others], expected.maps["s-grad-cam"][others], atol=2e-3)


def test_a_shard_without_images_has_arrays_without_rows():
    model = small()
    _, limits, masks = explain(model, pictures(3), some_truth(3), ExplainSettings(methods("grad-cam")))
    explained = explain_shard(
        model, [], [], some_truth(0), ExplainSettings(methods("grad-cam")), limits=limits, masks=masks
    )
    assert explained.maps["grad-cam"].shape[:2] == (0, 1)
    assert explained.sums["grad-cam.raw"].shape == (0, 1)


def test_too_little_memory_halves_the_batch_and_says_so():
    model, images, truth = small(), pictures(5), some_truth(5)
    settings = ExplainSettings(methods("grad-cam"), batch=5)
    expected, limits, masks = explain(model, images, truth, settings)
    cramped = replace(model, module=SmallMemory(model.module))
    explained = explain_shard(cramped, images, names(images), truth, settings, limits=limits, masks=masks)
    assert len(explained.notes) == 2
    np.testing.assert_allclose(explained.maps["grad-cam"], expected.maps["grad-cam"], rtol=2e-3, atol=1e-5)


def test_maps_beyond_float16_are_held_at_its_ends():
    model, images, truth = small(), pictures(3), some_truth(3)
    with torch.no_grad():
        model.module.head[2].weight *= 1e8
    explained, _, _ = explain(model, images, truth, ExplainSettings(methods("grad-cam", "s-grad-cam"), "all", 5))
    assert np.isfinite(explained.maps["grad-cam"]).all()
    assert np.abs(explained.maps["grad-cam"]).max() == np.finfo(np.float16).max
    assert np.abs(explained.sums["grad-cam.raw"]).max() > 1e6


def test_limits_without_a_span_end_the_pass_with_the_classs_name():
    limits = {"grad-cam": np.array([[0.0, 1.0]] * 4 + [[2.0, 2.0]])}
    with pytest.raises(ModelError, match=r"limits of class 'class 4' span 0\.0"):
        explain(small(), pictures(2), some_truth(2), ExplainSettings(methods("s-grad-cam")), limits=limits)
