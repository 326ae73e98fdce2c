"""How a memory serves a classifier, against loops over images and classes; a reduction with its laws."""

from copy import deepcopy
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch

from tasks.cams.mcam import MCam
from tasks.capture import capturing
from tasks.memory import Memory, pooled
from tasks.profile import Profile, ProfileSettings, Truth, profile_shard
from tasks.reductions.memory_use import MemoryUse
from tasks.slots import find_slots, noise_cosines
from tests.tasks.small_classifiers import deep_head, names, pictures, pixels, small, some_truth

SLOTS, FEATURES, CLASSES, IMAGES = 6, 12, 5, 23
MEMORY = Memory.seeded(3, FEATURES, (4, 4), CLASSES, slots=SLOTS)
SETTINGS = ProfileSettings(("grad-cam", "m-cam"), batch=4, rules={**ProfileSettings(()).rules, "m-cam": MCam(MEMORY)})
TASKS = ["one-label", "multi-label"]


def varied(task="one-label"):
    """A classifier, and a memory beside it, that answer now one class and now another: their mean logits are 0."""
    model, images, memory = small(deep_head(), task=task), pictures(IMAGES), deepcopy(MEMORY)
    with capturing(model) as capture:
        forward = capture(pixels(model, images))
    with torch.no_grad():
        model.module.head[-1].bias -= forward.logits.mean(0)
        memory.classifier.bias -= memory(pooled(forward.activation)).mean(0)
    return model, images, memory


def use_of(model, images, memory, batch=4):
    settings = replace(SETTINGS, batch=batch, rules={**SETTINGS.rules, "m-cam": MCam(memory)})
    found = profile_shard(model, images, names(images), some_truth(len(images)), settings)
    assert found.failures == {}
    assert found.profile.memory is not None
    return found.profile.memory


def drawn(seed):
    """Counts of a synthetic shard; sums that floats add up exactly."""
    random = np.random.default_rng(seed)
    votes = random.integers(0, 9, (SLOTS, CLASSES))
    counts = [random.integers(0, 9, CLASSES) for _ in range(4)]
    return MemoryUse(votes, counts[0], random.integers(0, 99, CLASSES) / 16, *counts[1:])


def same(left, right):
    return all(np.array_equal(values, right.arrays()[name]) for name, values in left.arrays().items())


@pytest.mark.parametrize("task", TASKS)
def test_votes_are_those_of_a_loop_over_the_images_and_the_classes_that_they_are_predicted_as(task):
    model, images, memory = varied(task)
    found = use_of(model, images, memory)
    votes, positive, steady = np.zeros((SLOTS, CLASSES)), np.zeros(CLASSES), np.zeros(CLASSES)
    for image, name in zip(images, names(images), strict=True):
        with capturing(model) as capture:
            forward = capture(pixels(model, [image]))
        hung = find_slots(memory, pooled(forward.activation), noise_cosines([name], FEATURES, SLOTS))
        logits = forward.logits[0]
        for target in range(CLASSES):
            if (logits[target] > 0) if task == "multi-label" else (logits.argmax() == target):
                votes[hung.slot[0, target], target] += 1
                positive[target] += bool(hung.positive[0, target])
                steady[target] += float(hung.steady[0, target])
    assert votes.sum() > 0
    assert np.array_equal(found.votes, votes)
    assert np.array_equal(found.positive, positive)
    np.testing.assert_allclose(found.steady, steady)


@pytest.mark.parametrize("task", TASKS)
def test_agreement_is_counted_as_a_loop_over_the_images_counts_it(task):
    model, images, memory = varied(task)
    found = use_of(model, images, memory)
    agreed, decisions, recalled = (np.zeros(CLASSES, np.int64) for _ in range(3))
    for image in images:
        with capturing(model) as capture, torch.no_grad():
            forward = capture(pixels(model, [image]))
            own, theirs = forward.logits[0], memory(pooled(forward.activation))[0]
        for target in range(CLASSES):
            if task == "multi-label":
                decisions[target] += 1
                agreed[target] += bool((own[target] > 0) == (theirs[target] > 0))
                recalled[target] += bool(own[target] > 0 and theirs[target] > 0)
            elif own.argmax() == target:
                decisions[target] += 1
                agreed[target] += bool(theirs.argmax() == target)
                recalled[target] += bool(theirs.argmax() == target)
    assert 0 < agreed.sum() < decisions.sum()
    assert found.agreed.tolist() == agreed.tolist()
    assert found.decisions.tolist() == decisions.tolist()
    assert found.recalled.tolist() == recalled.tolist()
    whole = found.of_all_classes()
    assert whole.agreement()[0] == agreed.sum() / decisions.sum()


def test_any_split_and_any_batch_give_the_same_counts_and_each_image_counts_once():
    model, images, memory = varied()
    whole = use_of(model, images, memory)
    assert whole.predicted.sum() == IMAGES
    for seed, batch in enumerate((1, 3, 64)):
        ends = np.sort(np.random.default_rng(seed).choice(np.arange(1, IMAGES), 3, replace=False))
        parts = [images[start:stop] for start, stop in zip([0, *ends], [*ends, IMAGES], strict=True)]
        merged = reduce(MemoryUse.merge, (use_of(model, part, memory, batch) for part in parts))
        assert same(replace(merged, steady=whole.steady), whole)
        np.testing.assert_allclose(merged.steady, whole.steady)


def test_classes_that_are_differentiated_in_chunks_count_once(monkeypatch):
    model, images, memory = varied()
    whole = use_of(model, images, memory)
    monkeypatch.setattr("tasks.cams.heads._CHUNK_ELEMENTS", 1)
    assert same(use_of(model, images, memory), whole)


def test_nothing_merged_with_something_is_that_and_merging_is_associative():
    nothing, one, two, three = MemoryUse.empty(SLOTS, CLASSES), drawn(1), drawn(2), drawn(3)
    assert same(nothing.merge(one), one)
    assert same(one.merge(nothing), one)
    assert same(one.merge(two).merge(three), one.merge(two.merge(three)))
    assert same(one.merge(two), two.merge(one))


def test_the_use_of_another_memory_is_not_merged():
    with pytest.raises(ValueError, match="cannot merge the use of memories"):
        drawn(1).merge(MemoryUse.empty(SLOTS + 1, CLASSES))


def test_it_goes_through_the_profiles_bytes_and_arrays():
    found = profile_shard(small(), pictures(5), names(pictures(5)), some_truth(5), SETTINGS).profile
    back = Profile.from_bytes(found.to_bytes()).memory
    assert back is not None
    assert found.memory is not None
    assert same(back, found.memory)
    assert found.arrays()["memory/votes"].sum() == 5


def test_a_profile_without_m_cam_has_none_and_does_not_merge_with_one_that_has():
    settings = replace(SETTINGS, bases=("grad-cam",))
    without = profile_shard(small(), pictures(3), names(pictures(3)), some_truth(3), settings).profile
    assert without.memory is None
    assert not any(name.startswith("memory/") for name in without.arrays())
    empty = profile_shard(small(), [], [], Truth(np.zeros(0, bool), np.zeros((0, CLASSES), bool)), SETTINGS).profile
    assert empty.memory is not None
    assert same(empty.memory, MemoryUse.empty(SLOTS, CLASSES))
    with pytest.raises(ValueError, match="profiles of"):
        without.merge(empty)
    with pytest.raises(ValueError, match="with a memory and one without"):
        empty.merge(Profile.empty(bases=SETTINGS.bases, classes=CLASSES))


def test_measures_of_what_never_happened_are_not_numbers_and_of_the_rest_are_shares():
    use = MemoryUse(
        np.array([[6, 0, 1], [2, 0, 1], [0, 0, 1]]),
        np.array([4, 0, 3]),
        np.array([2.0, 0.0, 3.0]),
        np.array([8, 0, 0]),
        np.array([10, 10, 3]),
        np.array([9, 10, 0]),
    )
    nan = float("nan")
    np.testing.assert_allclose(use.shares(), [[0.75, 0.0, 1 / 3], [0.25, 0.0, 1 / 3], [0.0, 0.0, 1 / 3]])
    np.testing.assert_allclose(use.agreement(), [0.9, 1.0, 0.0])
    np.testing.assert_allclose(use.recall(), [1.0, nan, 0.0])
    np.testing.assert_allclose(use.steadiness(), [0.25, nan, 1.0])
    np.testing.assert_allclose(use.positivity(), [0.5, nan, 1.0])
    np.testing.assert_allclose(use.slots_used(), [np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)), nan, 3.0])
    assert use.most_used(4).tolist() == [[0, 1, -1, -1], [-1, -1, -1, -1], [0, 1, 2, -1]]
