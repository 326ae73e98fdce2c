"""What pass 2 measures of maps, against a second way through the plain classifier, one case at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn.functional import interpolate

from storage.records import Box
from tasks.cams.names import MethodName
from tasks.explain import ExplainSettings, explain_shard
from tasks.image_judge import EVERY_BOX
from tasks.measures import located
from tasks.measures.concepts import count
from tasks.measures.names import COLUMNS, GROUPS
from tasks.measures.settings import MeasureSettings
from tasks.profile import ProfileSettings, Truth, profile_shard
from tests.tasks.small_classifiers import QUICK_METHODS, deep_head, names, pictures, pixels, small, some_truth

COUNT = 6
CHEAP = frozenset(("drop", "inverse", "alignment", "pointing", "iou"))
BOXES = [
    (Box("class 1", 2, 3, 9, 12), Box("class 1", 8, 0, 16, 5), Box("class 4", 0, 0, 5, 5)),
    None,
    (),
    (Box("class 0", 4, 4, 16, 16), Box("no class of the model", 0, 0, 4, 4)),
    (Box("class 2", 0, 8, 3, 16),),
    (Box("class 3", 1, 1, 2, 2), Box("class 1", 5, 5, 7, 16)),
]


def boxed(count=COUNT):
    return replace(some_truth(count), boxes=[BOXES[index % len(BOXES)] for index in range(count)])


def judged(model, images, *, groups=CHEAP, methods=("grad-cam",), truth=None, masks=None, thresholds=None, **options):
    settings = MeasureSettings(frozenset(groups), **{k: v for k, v in options.items() if hasattr(MeasureSettings, k)})
    others = {name: value for name, value in options.items() if not hasattr(MeasureSettings, name)}
    asked = {"targets": "all", "columns": 5, "batch": 4, "rules": QUICK_METHODS} | others
    explain = ExplainSettings(tuple(map(MethodName.parse, methods)), measures=settings, **asked)
    truth = truth or boxed(len(images))
    return explain_shard(
        model, images, names(images), truth, explain, limits={}, masks=masks or {}, thresholds=thresholds
    )


def signed_map(model, image, target):
    """Grad-CAM at native size, by plain autograd, [1,1,h,w]."""
    activation = model.module.trunk(pixels(model, [image])).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.module.head(activation)[0, target], activation)
    return (gradient.mean((2, 3), keepdim=True) * activation).sum(1, keepdim=True).detach()


def stretched(saliency):
    """From 0 to 1; a flat map is 0."""
    positive = saliency.clamp(min=0)
    span = positive.max() - positive.min()
    return (positive - positive.min()) / span if span > 0 else positive * 0


def unit_map(model, image, target):
    """At input size first, and stretched there."""
    return stretched(interpolate(signed_map(model, image, target), (16, 16), mode="bilinear")[0, 0])


def aligned_map(model, image, target):
    """Stretched at native size, and then brought to the input's."""
    return interpolate(stretched(signed_map(model, image, target)), (16, 16), mode="bilinear")[0, 0]


def points_inside(saliency, boxes):
    """The middle of the largest blob above .95, by scipy."""
    labels, count = ndimage.label((saliency > 0.95).numpy(), np.ones((3, 3)))
    if not count:
        return False
    largest = 1 + np.argmax(np.bincount(labels.ravel())[1:])
    y, x = np.array(ndimage.center_of_mass(labels == largest)) + 0.5
    return any(box.x0 <= x < box.x1 and box.y0 <= y < box.y1 for box in boxes)


def probability(model, inputs, target):
    with torch.no_grad():
        return model.module(inputs).softmax(1)[0, target].item()


def test_drop_increase_and_inverse_drop_are_those_of_each_masked_input_by_itself():
    model, images = small(deep_head()), pictures(COUNT)
    found = judged(model, images, groups=("drop", "inverse")).measures
    dark = model.preprocess.dark.view(1, 3, 1, 1)
    for row, image in enumerate(images):
        inputs = pixels(model, [image])
        for target in range(5):
            saliency = unit_map(model, image, target)
            before = probability(model, inputs, target)
            shown = probability(model, dark + (inputs - dark) * saliency, target)
            hidden = probability(model, dark + (inputs - dark) * (1 - saliency), target)
            assert found["grad-cam.drop"][row, target] == pytest.approx(max(0, before - shown) / before, abs=1e-5)
            assert found["grad-cam.increase"][row, target] == float(before < shown)
            assert found["grad-cam.inverse"][row, target] == pytest.approx(max(0, before - hidden) / before, abs=1e-5)


def test_localisation_is_measured_of_cases_with_boxes_of_their_class_and_of_no_other():
    model, images = small(), pictures(COUNT)
    found, hits = judged(model, images).measures, []
    for row, boxes in enumerate(BOXES):
        for target in range(5):
            own = [box for box in boxes or () if box.label == f"class {target}"]
            columns = [
                name for name in found if COLUMNS[name.partition(".")[2]].group in ("alignment", "pointing", "iou")
            ]
            if not own:
                assert all(np.isnan(found[name][row, target]) for name in columns)
                continue
            rectangles = torch.tensor([[box.x0, box.y0, box.x1, box.y1] for box in own]).long()
            region = located.region(rectangles, (16, 16))[None]
            saliency = unit_map(model, images[row], target)
            iobb, ior = located.alignment(aligned_map(model, images[row], target)[None], region)
            assert found["grad-cam.iobb"][row, target] == pytest.approx(iobb.item(), abs=1e-5)
            assert found["grad-cam.ior"][row, target] == pytest.approx(ior.item(), abs=1e-5)
            assert found["grad-cam.iou 0.3"][row, target] == located.iou(saliency[None], region, [0.3]).item()
            hits.append(points_inside(saliency, own))
            assert found["grad-cam.pointing"][row, target] == hits[-1]
            small_box = located.small(rectangles, (16, 16), 0.25)
            assert np.isnan(found["grad-cam.pointing small"][row, target]) != small_box
    assert {True, False} <= set(hits)  # else nothing would be tested


def test_the_default_measures_cost_two_forwards_an_image():
    model, images = small(), pictures(8)
    default = frozenset(group.name for group in GROUPS.values() if group.default)
    seen = []
    model.module.trunk.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    masks = {"grad-cam": np.ones((12, 5), bool)}
    options = {"targets": "predicted", "columns": 1, "masks": masks, "thresholds": np.zeros(12), "truth": boxed(8)}
    judged(model, images, groups=(), **options)
    without = sum(seen)
    seen.clear()
    judged(model, images, groups=default, **options)
    assert without == 8
    assert sum(seen) == 8 + 2 * 8


def test_a_sample_has_the_numbers_of_the_whole_and_nothing_else():
    model, images = small(), pictures(12)
    groups = ("drop", "infidelity", "sensitivity", "curves")
    whole = judged(model, images, groups=groups, draws=2, steps=3).measures
    part = judged(model, images, groups=groups, draws=2, steps=3, masked=0.6, perturbed=0.3).measures
    settings = MeasureSettings()
    masked, perturbed = (settings.sampled(names(images), share) for share in (0.6, 0.3))
    assert 0 < perturbed.sum() < masked.sum() < 12
    for name, values in part.items():
        chosen = masked if name in ("grad-cam.drop", "grad-cam.increase") else perturbed
        assert np.isnan(values[~chosen]).all(), name
        np.testing.assert_allclose(values[chosen], whole[name][chosen], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_the_batch_does_not_change_a_measure(batch):
    model, images = small(deep_head()), pictures(COUNT)
    groups = [group for group in GROUPS if group not in ("features", "concepts", "performance")]
    methods = ("grad-cam", "glas", "rise", "m-cam", "meaningful-perturbation")
    options = {"groups": groups, "methods": methods, "draws": 2, "steps": 3, "targets": (1, 4), "columns": 2}
    once, again = judged(model, images, **options).measures, judged(model, images, batch=batch, **options).measures
    assert once.keys() == again.keys()
    for name, values in once.items():
        if name.endswith(("increase", "pointing", "pointing small")):  # one case more or less
            assert np.nansum(values != again[name]) <= np.isnan(values).sum() + 1, name
        else:  # a pixel at a threshold, or in an order of nearly equal ones, may change sides
            steps = "iou" in name or name.endswith(("insertion", "deletion"))
            np.testing.assert_allclose(values, again[name], atol=1e-2 if steps else 2e-5, err_msg=name)


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_the_batch_does_not_change_what_is_measured_of_images(batch):
    model, images = small(deep_head()), pictures(COUNT)
    masks = {"grad-cam": np.random.default_rng(0).random((12, 5)) < 0.5}
    options = {"groups": ("features", "concepts"), "masks": masks, "thresholds": np.linspace(-0.1, 0.2, 12)}
    once, again = judged(model, images, **options), judged(model, images, batch=batch, **options)
    assert len(once.images) == 5
    for name, values in once.images.items():
        np.testing.assert_array_equal(values, again.images[name], err_msg=name)
    for name in ("rows", "classes", "disjoint", "unique"):
        np.testing.assert_array_equal(getattr(once.concepts, name), getattr(again.concepts, name), err_msg=name)
    assert once.concepts.disjoint.sum() > 0
    expected, found = once.concepts.detectors.arrays(), again.concepts.detectors.arrays()
    np.testing.assert_allclose(expected.pop("strongest_value"), found["strongest_value"], rtol=1e-5)  # convolution
    for name, values in expected.items():
        np.testing.assert_array_equal(values, found[name], err_msg=name)


def test_sensitivity_is_the_largest_relative_change_of_the_map_under_the_noise_of_the_image():
    model, images = small(deep_head()), pictures(3)
    found = judged(model, images, groups=("sensitivity",), draws=3, radius=0.1, targets=(2,), columns=1).measures
    from tasks.capture import capturing
    from tasks.probes import Probes

    def native(batch):
        activation = model.module.trunk(batch).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(model.module.head(activation)[:, 2].sum(), activation)
        return (gradient.mean((2, 3), keepdim=True) * activation).sum(1).detach().double()

    batch = pixels(model, images)
    with capturing(model) as capture:
        probes = Probes(model, capture, batch, capture(batch), names(images), step=4)
        noisy = [each.pixels for each in probes.nudged([0, 1, 2], 3, 0.1)]
    original = native(batch)
    changes = torch.stack([(native(each) - original).flatten(1).norm(dim=1) for each in noisy])
    expected = changes.amax(0) / original.flatten(1).norm(dim=1)
    np.testing.assert_allclose(found["grad-cam.sensitivity"][:, 0], expected, rtol=1e-4)


def test_a_class_that_has_no_map_has_no_measure():
    model, images = small(), pictures(COUNT)
    mask = np.ones((12, 5), bool)
    mask[:, 1] = False
    groups = ("drop", "alignment", "sensitivity", "infidelity")
    found = judged(model, images, groups=groups, methods=("fs-grad-cam",), masks={"grad-cam": mask}, draws=2).measures
    assert found
    for name, values in found.items():
        assert np.isnan(values[:, 1]).all(), name
    assert not np.isnan(found["fs-grad-cam.drop"][:, [0, 2, 3, 4]]).any()
    truth = boxed()
    labelled = judged(model, images, groups=("drop",), targets="labelled", columns=3, truth=truth)
    np.testing.assert_array_equal(np.isnan(labelled.measures["grad-cam.drop"]), labelled.classes < 0)


def test_each_iteration_of_rglas_is_measured_against_the_boxes():
    model, images = small(), pictures(COUNT)
    found = judged(model, images, groups=("iou", "drop"), methods=("rglas",)).measures
    steps = {name.partition(".")[0] for name in found}
    assert steps == {"rglas", "rglas[1]", "rglas[2]"}
    assert "rglas[1].drop" not in found
    np.testing.assert_allclose(found["rglas[2].iou 0.5"], found["rglas.iou 0.5"], atol=1e-12)


def test_concepts_are_counted_in_the_boxes_of_each_class_and_in_all_boxes():
    model, images = small(), pictures(COUNT)
    thresholds = np.linspace(-0.1, 0.2, 12)
    found = judged(model, images, groups=("concepts",), thresholds=thresholds).concepts
    rows = list(zip(found.rows.tolist(), found.classes.tolist(), strict=True))
    assert rows == [(0, 1), (0, 4), (0, -1), (3, 0), (3, -1), (4, 2), (4, -1), (5, 1), (5, 3), (5, -1)]
    for place, (row, category) in enumerate(rows):
        own = [box for box in BOXES[row] if category == EVERY_BOX or box.label == f"class {category}"]
        own = [box for box in own if box.label.startswith("class")]
        rectangles = torch.tensor([[box.x0, box.y0, box.x1, box.y1] for box in own]).long()
        with torch.no_grad():
            activation = model.module.trunk(pixels(model, [images[row]]))
        counts = count(activation, torch.from_numpy(thresholds).float(), [rectangles], (16, 16))[0]
        assert found.disjoint[place] == counts.sum()
        assert found.unique[place] == (counts > 0).sum()
    assert found.detectors.arrays()["images"].tolist() == [1, 2, 1, 1, 1]


def test_boxes_of_one_class_alone_are_looked_into_once(monkeypatch):
    model, images, regions = small(), pictures(COUNT), []

    def counting(activation, thresholds, boxes, size, *, images):
        regions.extend(boxes)
        return count(activation, thresholds, boxes, size, images=images)

    monkeypatch.setattr("tasks.image_judge.count", counting)
    found = judged(model, images, groups=("concepts",), thresholds=np.zeros(12)).concepts
    assert len(regions) == 3 + 1 + 1 + 3  # of images 0, 3, 4 and 5
    for row in (3, 4):
        (disjoint,), (unique,) = (set(values[found.rows == row]) for values in (found.disjoint, found.unique))
        assert disjoint >= unique > 0


@pytest.mark.parametrize("task", ["one-label", "multi-label"])
def test_a_class_without_principal_features_takes_no_part_with_masks(task):
    """Class 2 wins by its bias where nothing is left of it, and by its whole logit where all is."""
    model, images = replace(small(), task=task), pictures(COUNT)
    model.module.head[2].bias.data[2] = 100.0
    labels = np.array([0, 1, 2, 3, 4, 0])
    truth = Truth(np.ones(COUNT, bool), np.eye(5, dtype=bool)[labels])
    mask = np.random.default_rng(0).random((12, 5)) < 0.5
    mask[:, 2] = False
    found = judged(model, images, groups=("features",), truth=truth, masks={"grad-cam": mask}).images
    with torch.no_grad():
        activation = model.module.trunk(pixels(model, images))
    others = [0, 1, 3, 4]
    union = np.broadcast_to(mask.any(1, keepdims=True), mask.shape)
    for way, keep in (("principal", mask), ("non-principal", ~mask), ("principal.union", union)):
        kept = [activation * torch.from_numpy(keep[:, target].copy()).view(1, 12, 1, 1) for target in others]
        with torch.no_grad():
            logits = torch.stack([model.module.head(part)[:, c] for part, c in zip(kept, others, strict=True)], 1)
        if task == "one-label":
            right = np.array(others)[logits.argmax(1)] == labels
            expected = np.where(labels == 2, np.nan, right)
        else:
            expected = ((logits.numpy() > 0) == truth.positive[:, others]).mean(1)
        np.testing.assert_allclose(found[f"grad-cam.{way}"], expected, err_msg=way)
    assert (found["accuracy"] == (labels == 2)).all() or task == "multi-label"


def test_without_principal_features_of_any_class_masks_measure_nothing():
    truth = Truth(np.ones(COUNT, bool), np.eye(5, dtype=bool)[np.arange(COUNT) % 5])
    for task in ("one-label", "multi-label"):
        model, masks = replace(small(), task=task), {"grad-cam": np.zeros((12, 5), bool)}
        found = judged(model, pictures(COUNT), groups=("features",), truth=truth, masks=masks).images
        assert not np.isnan(found.pop("accuracy")).any()
        assert all(np.isnan(values).all() for values in found.values())


def test_an_answer_is_right_or_not_with_which_features_and_unknown_without_a_label():
    model, images = small(), pictures(8)
    truth = Truth(np.arange(8) != 3, np.eye(5, dtype=bool)[np.arange(8) % 5])
    profile = profile_shard(model, images, names(images), truth, ProfileSettings(("grad-cam",))).profile
    mask = profile.mask("grad-cam", share=0.3)
    found = judged(model, images, groups=("features",), truth=truth, masks={"grad-cam": mask})
    assert set(found.images) == {
        "accuracy", "grad-cam.principal", "grad-cam.non-principal", "grad-cam.principal.union",
        "grad-cam.non-principal.union",
    }  # fmt: skip
    for values in found.images.values():
        assert np.isnan(values).tolist() == [row == 3 for row in range(8)]
    right = found.logits.argmax(1) == np.arange(8) % 5
    np.testing.assert_array_equal(found.images["accuracy"][truth.labelled], right[truth.labelled])


def test_where_the_head_is_not_linear_masks_are_tried_on_the_smaller_sample_alone():
    model, images = small(deep_head()), pictures(12)
    truth = Truth(np.ones(12, bool), np.eye(5, dtype=bool)[np.arange(12) % 5])
    masks = {"grad-cam": np.random.default_rng(0).random((12, 5)) < 0.5}
    whole = judged(model, images, groups=("features",), truth=truth, masks=masks).images
    part = judged(model, images, groups=("features",), truth=truth, masks=masks, perturbed=0.3).images
    sample = MeasureSettings().sampled(names(images), 0.3)
    assert 0 < sample.sum() < 12
    np.testing.assert_array_equal(part["accuracy"], whole["accuracy"])
    for name in set(whole) - {"accuracy"}:
        np.testing.assert_array_equal(part[name], np.where(sample, whole[name], np.nan), err_msg=name)


def test_an_image_that_fails_has_no_measure_and_the_others_keep_theirs():
    model, images = small(), pictures(COUNT)
    whole = judged(model, images).measures["grad-cam.drop"]
    broken = [image.astype(np.float32) / 255 for image in images]
    broken[2] = np.full_like(broken[2], np.nan)
    found = judged(model, broken)
    assert list(found.failures) == [2]
    assert np.isnan(found.measures["grad-cam.drop"][2]).all()
    np.testing.assert_allclose(np.delete(found.measures["grad-cam.drop"], 2, 0), np.delete(whole, 2, 0), atol=1e-4)
