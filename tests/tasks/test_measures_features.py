"""Logits and accuracy with some of the features, against a hook that sets channels to 0 in the model itself."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, hamming_loss
from torch import nn

from tasks.cams.heads import Head
from tasks.measures.features import WAYS, correct, masked_logits
from tests.tasks.small_classifiers import (
    TwoLayers,
    classifier,
    deep_head,
    evidence_of,
    from_torchvision,
    in_place_relu_head,
    pictures,
    pixels,
    pooled_head,
    small,
)
from tests.tasks.test_volumes import pair

COUNT = 3


class JoinsTheInput(TwoLayers):
    """The layer's output is joined with another way from the input, which the head needs for every row."""

    def forward(self, images):
        around = nn.functional.adaptive_avg_pool2d(images, 4)
        return self.head(torch.cat([self.trunk(images), around.repeat(1, 4, 1, 1)], 1))


def joined():
    torch.manual_seed(0)
    return classifier(JoinsTheInput(deep_head(features=24)), "trunk")


MODELS = {
    "gap-linear": lambda: small(pooled_head()),
    "relu-gap-linear": lambda: small(in_place_relu_head()),
    "deep": lambda: small(deep_head()),
    "joined": joined,
    "volumes": lambda: pair(deep_head)[1],
    "resnet18": lambda: from_torchvision("resnet18"),
    "densenet121": lambda: from_torchvision("densenet121"),
    "swin_t": lambda: from_torchvision("swin_t"),
    "vit_b_16": lambda: from_torchvision("vit_b_16", size=32),
}
BIAS = {
    "gap-linear": "head.2.bias",
    "relu-gap-linear": "head.3.bias",
    "resnet18": "fc.bias",
    "densenet121": "classifier.bias",
    "swin_t": "head.bias",
}


def shown(model):
    if len(model.preprocess.size) == 3:
        return [np.random.default_rng(index).random((1, 16, 16, 1), np.float32) for index in range(COUNT)]
    return pictures(COUNT, size=model.preprocess.size[0])


def some_masks(features):
    """[F,C]: a third of the features; class 3 has none, and class 4 the same as class 0."""
    masks = torch.rand(features, 5, generator=torch.Generator().manual_seed(0)) < 1 / 3
    masks[:, 3] = False
    masks[:, 4] = masks[:, 0]
    return masks


def every(probes):
    return range(len(probes.pixels))


def measured(model, masks=None, head=None, step=4):
    """Logits by way, the head's name and the model's own logits."""
    with evidence_of(model, shown(model), torch.arange(5), head, step=step) as evidence:
        masks = some_masks(evidence.activation.shape[1]).to(model.device) if masks is None else masks
        return (
            masked_logits(evidence.head, evidence.probes, masks, every(evidence.probes)),
            evidence.head.name,
            evidence.forward.logits,
        )


@contextmanager
def without(model, features, axis):
    """The model with these features of its target layer set to 0."""

    def hush(_module, _inputs, output):
        silent = output.clone()
        silent.movedim(axis, 0)[features] = 0
        return silent

    handle = model.module.get_submodule(model.layer).register_forward_hook(hush)
    yield model.module
    handle.remove()


def by_hand(model, masks):
    """Way -> [B,C], a forward of the whole model for each class and way."""
    axis = 1 if model.reshape is None else -1
    batch, found = pixels(model, shown(model)), {way: torch.zeros(COUNT, 5) for way in WAYS}
    for target in range(5):
        own, any_class = masks[:, target], masks.any(1)
        for way, keep in zip(WAYS, (own, ~own, any_class, ~any_class), strict=True):
            with without(model, ~keep, axis) as module, torch.no_grad():
                found[way][:, target] = module(batch)[:, target]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_masked_logits_are_those_of_a_model_whose_channels_are_set_to_0(name):
    model = MODELS[name]()
    found, head, logits = measured(model)
    features = {"vit_b_16": 768, "swin_t": 768, "resnet18": 512, "densenet121": 1024}.get(name, 12)
    expected = by_hand(model, some_masks(features))
    assert (head in ("gap-linear", "relu-gap-linear")) == (name in BIAS)
    assert list(found) == list(WAYS)
    for way in WAYS:
        torch.testing.assert_close(found[way], expected[way], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found[way], logits, atol=1e-3)


@pytest.mark.parametrize("name", BIAS)
def test_the_closed_form_is_what_the_head_answers_to_masked_features(name):
    """DenseNet's head rectifies what it pools, and a feature that is set to 0 stays 0 behind that."""
    model = MODELS[name]()
    closed, _, _ = measured(model)
    passed, head, _ = measured(model, head=Head(None, 1e-5))
    assert head == "autograd"
    for way in WAYS:
        torch.testing.assert_close(closed[way], passed[way], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BIAS)
@pytest.mark.parametrize("ways", [WAYS[:2], WAYS[2:]])
def test_of_a_linear_head_a_mask_and_its_complement_add_up_to_the_logit_and_a_bias(name, ways):
    model = MODELS[name]()
    found, _, logits = measured(model)
    bias = dict(model.module.named_parameters())[BIAS[name]]
    torch.testing.assert_close(found[ways[0]] + found[ways[1]] - bias, logits, rtol=1e-4, atol=1e-5)


def test_of_another_head_they_do_not():
    model = MODELS["deep"]()
    found, _, logits = measured(model)
    nothing, _, _ = measured(model, torch.zeros(12, 5, dtype=torch.bool))
    rest = found["principal"] + found["non-principal"] - nothing["principal"]
    assert (rest - logits).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["gap-linear", "deep", "volumes"])
def test_all_features_give_the_models_own_logits_and_no_mask_means_the_same_for_a_class_or_for_all(name):
    model = MODELS[name]()
    found, _, logits = measured(model, torch.ones(12, 5, dtype=torch.bool))
    torch.testing.assert_close(found["principal"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["principal.union"], logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["non-principal"], found["non-principal.union"])


class LinearUntilHushed(nn.Module):
    """Pooled and linear on usual images only."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 5)

    def forward(self, activation):
        pooled = activation.mean((2, 3))
        return self.linear(pooled + (pooled - 10).relu() ** 2)


def test_a_batch_that_the_closed_form_does_not_explain_is_passed_through_the_head():
    model = small(LinearUntilHushed())
    with evidence_of(model, shown(model), torch.arange(5)) as evidence:
        head, probes = evidence.head, evidence.probes
        unusual = type(probes)(
            model, probes._capture, 200 * probes.pixels, probes._capture(200 * probes.pixels), probes.names, step=4
        )
        found = masked_logits(head, unusual, some_masks(12), every(unusual))
        expected = masked_logits(Head(None, 1e-5), unusual, some_masks(12), every(unusual))
    assert head.name == "gap-linear"
    for way in WAYS:
        torch.testing.assert_close(found[way], expected[way])


@pytest.mark.parametrize(
    ("name", "trunk", "head"),
    [("gap-linear", 0, 0), ("deep", COUNT * 3, COUNT * 10), ("joined", COUNT * 10 + 2, COUNT * 10)],
)
def test_what_masked_logits_cost(name, trunk, head):
    """No forward of a linear head; else a pass of the head for each mask that differs, here 4 of classes, their 4
    complements, the union and its own. The trunk sees an image once for 4 of them, unless its output is joined, which
    shows when the first image fails, in either memory layout."""
    model = MODELS[name]()
    rows = {"trunk": 0, "head": 0}
    for part in rows:
        layer = model.module.get_submodule(part)
        layer.register_forward_pre_hook(lambda _m, inputs, part=part: rows.update({part: rows[part] + len(inputs[0])}))
    with evidence_of(model, shown(model), torch.arange(5)) as evidence:
        masks = some_masks(12)
        rows.update(trunk=0, head=0)
        masked_logits(evidence.head, evidence.probes, masks, every(evidence.probes))
    assert rows == {"trunk": trunk, "head": head}


TASKS = ["one-label", "multi-label"]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_right_is_scikit_learns(task, device):
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 5)).astype(np.float32)
    labels = random.integers(0, 5, 50)
    positive = np.eye(5, dtype=bool)[labels] if task == "one-label" else random.random((50, 5)) < 0.4
    found = correct(torch.from_numpy(logits).to(device), torch.from_numpy(positive).to(device), task)
    assert found.dtype == torch.float64
    if task == "one-label":
        assert set(found.tolist()) == {0.0, 1.0}
        assert found.mean().item() == pytest.approx(accuracy_score(labels, logits.argmax(1)))
    else:
        assert found.mean().item() == pytest.approx(1 - hamming_loss(positive, logits > 0))
        assert found[7].item() == pytest.approx(((logits[7] > 0) == positive[7]).mean())
