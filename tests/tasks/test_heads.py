import pytest
import torch
from torch import nn

from tasks.cams import heads
from tasks.cams.heads import Head
from tasks.cams.weights import Dense, Separable
from tasks.capture import capturing
from tests.tasks.small_classifiers import (
    QUICK,
    deep_head,
    evidence_of,
    from_torchvision,
    in_place_relu_head,
    pictures,
    pixels,
    pooled_head,
    small,
)

ALL = torch.arange(5)


def forward_of(model, count=3):
    with capturing(model) as capture:
        return capture(pixels(model, pictures(count, size=model.preprocess.size[0])))


def recognised(model, forward):
    return Head.recognise(model.module, forward, "float32")


@pytest.mark.parametrize(
    ("head", "name"),
    [(pooled_head, "gap-linear"), (in_place_relu_head, "relu-gap-linear"), (deep_head, "autograd")],
)
def test_a_head_is_recognised_for_what_it_is(head, name, device):
    model = small(head(), device=device)
    assert recognised(model, forward_of(model)).name == name


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("resnet18", "gap-linear"),
        ("densenet121", "relu-gap-linear"),
        ("efficientnet_b0", "gap-linear"),
        ("mobilenet_v2", "gap-linear"),
        ("mobilenet_v3_small", "autograd"),
        ("convnext_tiny", "autograd"),
        ("vgg11", "autograd"),
        ("swin_t", "gap-linear"),
        ("vit_b_16", "autograd"),
    ],
)
def test_torchvisions_heads_are_recognised(architecture, name):
    model = from_torchvision(architecture, size=64 if architecture != "vgg11" else 32)
    forward = forward_of(model, 2)
    assert recognised(model, forward).name == name


class Scaled(nn.Module):
    """Looks like a pooled linear head, and is not."""

    def __init__(self, power):
        super().__init__()
        self.linear = nn.Linear(12, 5)
        self.power = power

    def forward(self, activation):
        pooled = activation.mean((2, 3))
        return self.linear(pooled) * (1 + self.power * pooled.mean(1, keepdim=True))


class MaxPooled(Scaled):
    def forward(self, activation):
        return self.linear(activation.amax((2, 3)))


@pytest.mark.parametrize("head", [lambda: Scaled(1e-2), lambda: MaxPooled(0)])
@pytest.mark.parametrize("count", [1, 4])
def test_a_head_that_only_looks_linear_is_left_to_autograd(head, count):
    torch.manual_seed(0)  # under some weights a scaled head is linear as far as float32 can tell
    model = small(head())
    assert recognised(model, forward_of(model, count)).name == "autograd"


class LinearUntilSurprised(Scaled):
    """Pooled and linear, until a pooled feature passes a threshold that the first batch does not reach."""

    def forward(self, activation):
        pooled = activation.mean((2, 3))
        return self.linear(pooled + (pooled - self.power).relu() ** 2)


def test_a_batch_that_the_closed_form_does_not_explain_is_differentiated():
    with capturing(small()) as capture:
        model = small(LinearUntilSurprised(10.0))
    with capturing(model) as capture:
        usual = capture(pixels(model, pictures(3)))
        unusual = capture(200 * pixels(model, pictures(3)))
        lone = capture(200 * pixels(model, pictures(1)))
    head = recognised(model, usual)
    assert head.name == "gap-linear"
    assert all(isinstance(gradient, Separable) for _, gradient in head.gradients(usual, ALL, 1))
    for forward in (unusual, lone):
        ((_, gradient),) = head.gradients(forward, ALL, 1)
        assert isinstance(gradient, Dense)
        torch.testing.assert_close(gradient.values, forward.gradient(ALL.expand(len(forward.logits), -1)))


@pytest.mark.parametrize("head", [pooled_head, in_place_relu_head])
@pytest.mark.parametrize("base", QUICK)
@pytest.mark.parametrize("targets", [ALL, torch.tensor([[0, 3], [4, 4], [2, 1]])], ids=["all", "own"])
def test_the_closed_form_gives_what_autograd_gives(head, base, targets, device):
    model = small(head(), device=device)
    targets = targets.to(device)
    counted = torch.rand(3, targets.shape[-1], generator=torch.Generator().manual_seed(0)).to(device) < 0.5
    found = []
    for known in (recognised(model, forward_of(model)), Head(None, 1e-5)):
        with evidence_of(model, pictures(3), targets, known) as evidence:
            weights = QUICK[base].weights(evidence)
        totals = weights.totals(evidence.activation)
        found.append((weights.saliency(evidence.activation), totals.summed(None), totals.summed(counted)))
    for ours, autograds in zip(*found, strict=True):
        assert ours.shape == autograds.shape
        torch.testing.assert_close(ours, autograds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", [pooled_head, in_place_relu_head, deep_head])
@pytest.mark.parametrize("targets", [ALL, torch.tensor([[0, 3], [4, 4], [2, 1]])], ids=["all", "own"])
def test_chunks_of_classes_change_nothing(head, targets, monkeypatch):
    model = small(head())
    forward = forward_of(model)
    known = recognised(model, forward)
    ((_, whole),) = known.gradients(forward, targets, 16)
    monkeypatch.setattr(heads, "_CHUNK_ELEMENTS", 1)
    parts = [gradient.saliency(forward.activation) for _, gradient in known.gradients(forward, targets, 16)]
    assert len(parts) == targets.shape[-1]
    torch.testing.assert_close(torch.cat(parts, 1), whole.saliency(forward.activation), rtol=1e-5, atol=1e-6)
