from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from torch import nn

from tasks.cams.names import BASE_METHODS, FEATURE_METHODS
from tasks.capture import capturing
from tasks.profile import Profile, ProfileSettings, Truth, profile_shard
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

IMAGES = 6
SETTINGS = ProfileSettings(BASE_METHODS, batch=4, extrema=True, rules=QUICK_METHODS)
GRAD_CAM = replace(SETTINGS, bases=("grad-cam",))
HEADS = [pooled_head, in_place_relu_head, deep_head]


def profile(model, images, truth, settings=SETTINGS):
    shard = profile_shard(model, images, names(images), truth, settings)
    assert shard.failures == {}
    return shard.profile


def rows(truth, places):
    return Truth(truth.labelled[places], truth.positive[places])


def assert_same(left, right, **tolerance):
    left, right = left.arrays(), right.arrays()
    assert left.keys() == right.keys()
    for name, values in left.items():
        if values.dtype.kind == "i" or not tolerance:
            np.testing.assert_array_equal(values, right[name], err_msg=name)
        else:
            np.testing.assert_allclose(values, right[name], err_msg=name, **tolerance)


def maps_one_by_one(model, images):
    """saliency of Grad-CAM [N,C,h,w] and A [N,F,h,w], logits: image by image, class by class, with plain autograd."""
    saliency, activations, logits = [], [], []
    for image in images:
        with torch.no_grad():
            activation = model.module.trunk(pixels(model, [image])).detach()
        leaf = activation.clone().requires_grad_()
        outputs = model.module.head(leaf.clone())[0]
        gradients = [torch.autograd.grad(logit, leaf, retain_graph=True)[0] for logit in outputs]
        weights = [gradient.mean((2, 3), keepdim=True) for gradient in gradients]
        saliency.append(torch.stack([(weight * activation)[0] for weight in weights]))
        activations.append(activation[0])
        logits.append(outputs.detach())
    weighted = torch.stack(saliency).double()  # [N,C,F,h,w]
    return weighted, torch.stack(activations), torch.stack(logits)


@pytest.fixture(params=HEADS)
def model(request, device):
    return small(request.param(), device=device)


@pytest.mark.parametrize("task", ["one-label", "multi-label"])
def test_a_profile_is_what_a_loop_over_images_and_classes_finds(task, device):
    for head in HEADS:
        model = small(head(), task=task, device=device)
        images, truth = pictures(IMAGES), some_truth(IMAGES)
        found = profile(model, images, truth, GRAD_CAM)
        weighted, activations, logits = (part.cpu().numpy() for part in maps_one_by_one(model, images))
        true = truth.positive & truth.labelled[:, None]
        predicted = logits > 0 if task == "multi-label" else np.eye(5, dtype=bool)[logits.argmax(1)]
        sums = weighted.sum((3, 4))
        importance = found.importance["grad-cam"]
        for kind, counted in {"all": np.ones_like(true), "true": true, "correct": true & predicted}.items():
            with np.errstate(invalid="ignore"):
                expected = np.einsum("ncf,nc->fc", sums, counted) / counted.sum(0)
            np.testing.assert_allclose(importance[kind].matrix(), expected, rtol=1e-4, atol=1e-6)
        cells = weighted.sum(2).transpose(1, 0, 2, 3).reshape(5, -1)
        for share in (0.1, 0.5, 0.9):
            exact = np.quantile(cells, share, axis=1, method="inverted_cdf")
            np.testing.assert_allclose(
                found.levels["grad-cam"].cells.quantile(share), exact, rtol=2**-6 + 1e-4, atol=1e-6
            )
        assert found.levels["grad-cam"].cells.totals.tolist() == [IMAGES * 16] * 5
        np.testing.assert_allclose(found.arrays()["features/active"], (activations > 0).mean((0, 2, 3)))
        assert found.labels.tolist() == true.sum(0).tolist()
        assert found.labelled == truth.labelled.sum()
        assert found.predictions.tolist() == predicted.sum(0).tolist()
        np.testing.assert_allclose(found.logits.mean, logits.mean(0), rtol=1e-4, atol=1e-5)


def test_importance_sums_over_features_to_the_mean_sum_of_maps(model):
    found = profile(model, pictures(IMAGES), some_truth(IMAGES), GRAD_CAM)
    weighted, _, _ = maps_one_by_one(model, pictures(IMAGES))
    expected = weighted.sum((2, 3, 4)).mean(0).cpu().numpy()
    np.testing.assert_allclose(found.importance["grad-cam"]["all"].matrix().sum(0), expected, rtol=1e-4, atol=1e-5)


def test_pixel_wise_and_xgrad_importance_agree_under_any_head(model):
    settings = replace(SETTINGS, bases=("pixel-grad-cam", "xgrad-cam"))
    found = profile(model, pictures(IMAGES), some_truth(IMAGES), settings)
    pixel, xgrad = (found.importance[base]["all"].matrix() for base in ("pixel-grad-cam", "xgrad-cam"))
    np.testing.assert_allclose(pixel, xgrad, rtol=1e-3, atol=1e-6)


def test_the_same_shard_gives_the_same_bytes(model):
    first, second = (profile(model, pictures(IMAGES), some_truth(IMAGES)).to_bytes() for _ in range(2))
    assert first == second


def test_another_batch_changes_next_to_nothing(model):
    truth = some_truth(IMAGES)
    reference = profile(model, pictures(IMAGES), truth)
    for batch in (1, 5, 64):
        other = profile(model, pictures(IMAGES), truth, replace(SETTINGS, batch=batch))
        for base in FEATURE_METHODS:
            for kind in ("all", "true", "correct"):
                ours, theirs = (part.importance[base][kind].matrix() for part in (reference, other))
                scale = np.nanmax(np.abs(ours))
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale)
        for base in BASE_METHODS:
            for source in ("pixel", "extrema"):
                np.testing.assert_allclose(
                    reference.limits(base, source=source), other.limits(base, source=source), rtol=2**-5, atol=1e-5
                )


def test_shards_merge_to_the_whole_in_any_order(model):
    images, truth = pictures(IMAGES), some_truth(IMAGES)
    settings = replace(SETTINGS, batch=1)  # so that no batch crosses a shard's end, and counts are equal to the bit
    whole = profile(model, images, truth, settings)
    parts = [
        profile(model, [images[place] for place in places], rows(truth, places), settings)
        for places in (np.array([5, 3]), np.array([0, 1, 2]), np.array([4]))
    ]
    merged = reduce(Profile.merge, parts)
    assert_same(merged, whole, rtol=1e-9, atol=1e-12)
    assert_same(reduce(Profile.merge, parts[::-1]), merged, rtol=1e-9, atol=1e-12)
    assert parts[0].merge(parts[1]).to_bytes() == parts[1].merge(parts[0]).to_bytes()


def test_an_empty_profile_changes_nothing():
    found = profile(small(), pictures(5), some_truth(5))
    for empty in (
        Profile.empty(bases=BASE_METHODS, featured=SETTINGS.featured, classes=5, extrema=True, slots=6),
        profile_shard(small(), [], [], some_truth(0), SETTINGS).profile,
    ):
        assert empty.images == 0
        assert empty.merge(found).to_bytes() == found.merge(empty).to_bytes() == found.to_bytes()


def test_a_profile_survives_its_bytes():
    for settings in (SETTINGS, replace(SETTINGS, extrema=False, bits=3)):
        found = profile(small(), pictures(5), some_truth(5), settings)
        assert_same(Profile.from_bytes(found.to_bytes()), found)
        empty = profile_shard(small(), [], [], some_truth(0), settings).profile
        assert Profile.from_bytes(empty.to_bytes()).to_bytes() == empty.to_bytes()


def test_profiles_of_different_methods_do_not_merge():
    one, other = (Profile.empty(bases=bases, classes=5) for bases in (["grad-cam"], ["xgrad-cam"]))
    with pytest.raises(ValueError, match="cannot merge profiles"):
        one.merge(other)


def test_a_class_without_an_image_has_no_true_importance_but_levels():
    truth = Truth(np.ones(6, bool), np.eye(5, dtype=bool)[[0, 0, 1, 1, 2, 4]])
    found = profile(small(), pictures(6), truth)
    assert np.isnan(found.importance["grad-cam"]["true"].matrix()).all(0).tolist() == [0, 0, 0, 1, 0]
    assert not found.mask("grad-cam", importance="true")[:, 3].any()
    assert np.isfinite(found.limits("grad-cam")).all()


def test_limits_are_quantiles_of_cells_or_of_extrema():
    model, images = small(), pictures(IMAGES)
    found = profile(model, images, some_truth(IMAGES))
    weighted, _, _ = maps_one_by_one(model, images)
    cells = weighted.sum(2).flatten(2).numpy()
    minima, maxima = cells.min(2), cells.max(2)
    expected = np.stack(
        [np.quantile(values, share, axis=0, method="inverted_cdf") for values, share in ((minima, 0.5), (maxima, 0.9))],
        axis=1,
    )
    np.testing.assert_allclose(found.limits("grad-cam", source="extrema"), expected, rtol=2**-6 + 1e-4)
    wide, narrow = (found.limits("grad-cam", low=low, high=1 - low) for low in (0.01, 0.3))
    assert (wide[:, 0] < narrow[:, 0]).all()
    assert (narrow[:, 1] < wide[:, 1]).all()
    plain = profile(model, images, some_truth(IMAGES), replace(SETTINGS, extrema=False))
    with pytest.raises(ValueError, match="without extrema"):
        plain.limits("grad-cam", source="extrema")


class Fragile(nn.Module):
    """Breaks on some images: a white one has no finite logits, a black one no finite activation."""

    def __init__(self, inner):
        super().__init__()
        self.trunk, self.head = inner.trunk, inner.head

    def forward(self, images):
        level = images.mean((1, 2, 3))
        dark = torch.where(level < -1.9, torch.nan, 1.0)[:, None, None, None]
        bright = torch.where(level > 1.9, torch.inf, 0.0)[:, None]
        return self.head(self.trunk(images * dark)) + bright


def test_images_without_finite_numbers_fail_with_a_reason_and_count_nowhere(device):
    model = small(device=device)
    fragile = replace(model, module=Fragile(model.module))
    images, truth = pictures(7), some_truth(7)
    images[2] = np.zeros_like(images[2])
    images[5] = np.full_like(images[5], 255)
    shard = profile_shard(fragile, images, names(images), truth, SETTINGS)
    assert shard.failures == {
        2: "the classifier's activation is not finite for this image",
        5: "the classifier's output is not finite for this image",
    }
    good = np.array([0, 1, 3, 4, 6])
    expected = profile(model, [images[place] for place in good], rows(truth, good))
    assert_same(shard.profile, expected, rtol=1e-5, atol=1e-6)


def test_a_shard_of_bad_images_alone_counts_nothing():
    model = small()
    shard = profile_shard(
        replace(model, module=Fragile(model.module)),
        [np.zeros((16, 16), np.uint8)] * 3,
        ["", "", ""],
        some_truth(3),
        SETTINGS,
    )
    assert sorted(shard.failures) == [0, 1, 2]
    assert shard.profile.images == 0


class SmallMemory(nn.Module):
    """A device that holds two images."""

    def __init__(self, inner):
        super().__init__()
        self.trunk, self.head = inner.trunk, inner.head

    def forward(self, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("no memory")
        return self.head(self.trunk(images))


def test_too_little_memory_halves_the_batch_says_so_and_counts_no_image_twice():
    model = small()
    images, truth = pictures(7), some_truth(7)
    cramped = replace(model, module=SmallMemory(model.module))
    shard = profile_shard(cramped, images, names(images), truth, replace(SETTINGS, batch=8))
    assert tuple(map(str, shard.notes)) == (
        "out of device memory with 7 images a batch: went on with 4",
        "out of device memory with 4 images a batch: went on with 2",
    )
    assert_same(shard.profile, profile(model, images, truth, replace(SETTINGS, batch=2)))


def test_bf16_says_how_far_it_is_from_float32():
    model = small()
    shard = profile_shard(model, pictures(6), names(pictures(6)), some_truth(6), replace(SETTINGS, precision="bf16"))
    (note,) = shard.notes
    assert str(note).startswith("bf16: logits differ from float32 by up to ")
    assert 0 < note.number < 0.1
    exact = profile(model, pictures(6), some_truth(6))
    np.testing.assert_allclose(shard.profile.logits.mean, exact.logits.mean, rtol=0.1, atol=0.05)


def test_a_profile_leaves_the_classifier_as_it_was():
    model = small()
    model.module.train()
    before = [parameter.requires_grad for parameter in model.module.parameters()]
    profile(model, pictures(3), some_truth(3))
    assert model.module.training
    assert [parameter.requires_grad for parameter in model.module.parameters()] == before
    assert not any(part._forward_hooks for part in model.module.modules())
    with capturing(model):
        assert not model.module.training
