import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM, GradCAMElementWise, GradCAMPlusPlus, XGradCAM
from torch import nn
from torch.nn.functional import relu
from torchcam import methods as torchcam_methods

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

ARCHITECTURES = ["resnet18", "densenet121"]
TARGETS = torch.tensor([[0], [3], [1]])


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return from_torchvision(request.param)


def saliency_of(model, base, targets):
    """Maps [B,T,h,w] of three pictures, and their forward."""
    with evidence_of(model, pictures(3, size=model.preprocess.size[0]), targets, step=32) as evidence:
        return QUICK[base].weights(evidence).saliency(evidence.activation), evidence.forward


class WithoutInPlaceRelu(nn.Module):
    """DenseNet as it is, but for the in-place ReLU behind its features, which edits what the libraries keep."""

    def __init__(self, densenet):
        super().__init__()
        self.features, self.classifier = densenet.features, densenet.classifier

    def forward(self, images):
        return self.classifier(relu(self.features(images)).mean((2, 3)))


@pytest.fixture
def subject(model):
    """The same weights in a module that the libraries read correctly: trainable, nothing in place at the layer."""
    densenet = model.layer.startswith("features")
    module = WithoutInPlaceRelu(model.module) if densenet else model.module
    module.requires_grad_(True)
    yield module.eval()
    module.requires_grad_(False)
    module.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("base", "oracle"), [("grad-cam", GradCAM), ("xgrad-cam", XGradCAM), ("grad-cam++", GradCAMPlusPlus)]
)
def test_maps_are_those_of_pytorch_grad_cam_before_it_scales_them(model, subject, base, oracle):
    images = pixels(model, pictures(3, size=64))
    layer = subject.get_submodule(model.layer)
    with oracle(subject, [layer]) as camera:
        kept = camera.activations_and_grads
        logits = kept(images)
        logits.gather(1, TARGETS).sum().backward()
        activation, gradient = kept.activations[0].numpy(), kept.gradients[0].numpy()
        expected = camera.get_cam_image(images, layer, TARGETS, activation, gradient)
    found, _ = saliency_of(model, base, TARGETS)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_pixel_wise_maps_are_those_of_pytorch_grad_cam_before_it_drops_what_is_negative(model, subject):
    images = pixels(model, pictures(3, size=64))
    with GradCAMElementWise(subject, [subject.get_submodule(model.layer)]) as camera:
        kept = camera.activations_and_grads
        kept(images).gather(1, TARGETS).sum().backward()
        expected = (kept.activations[0] * kept.gradients[0]).sum(1).numpy()
    found, _ = saliency_of(model, "pixel-grad-cam", TARGETS)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("base", "name"), [("grad-cam", "GradCAM"), ("xgrad-cam", "XGradCAM")])
def test_maps_are_those_of_torchcam_before_it_scales_them(model, subject, base, name):
    images = pixels(model, pictures(3, size=64))
    with getattr(torchcam_methods, name)(subject, subject.get_submodule(model.layer)) as camera:
        camera._relu = False
        (expected,) = camera(TARGETS[:, 0].tolist(), subject(images), normalized=False)
    expected = expected.detach().numpy()
    found, _ = saliency_of(model, base, TARGETS)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_with_a_pooled_linear_head_a_map_and_the_bias_sum_to_the_logit(model):
    bias = list(model.module.parameters())[-1]
    base = "grad-cam" if model.layer == "layer4" else "pixel-grad-cam"  # behind a ReLU, only cells tell them apart
    found, forward = saliency_of(model, base, torch.arange(5))
    torch.testing.assert_close(found.sum((2, 3)) + bias, forward.logits, rtol=1e-4, atol=1e-4)


def test_pixel_wise_and_xgrad_maps_have_the_same_sum_under_any_head():
    model = small(deep_head())
    for targets in (torch.arange(5), TARGETS):
        pixel, _ = saliency_of(model, "pixel-grad-cam", targets)
        xgrad, forward = saliency_of(model, "xgrad-cam", targets)
        assert forward.activation.sum((2, 3)).abs().min() > 1e-2  # eps is nothing beside it
        torch.testing.assert_close(pixel.sum((2, 3)), xgrad.sum((2, 3)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("base", QUICK)
@pytest.mark.parametrize("head", [pooled_head, in_place_relu_head, deep_head])
def test_a_mask_and_its_complement_make_the_whole_map(base, head):
    model = small(head())
    mask = torch.rand(5, 12, generator=torch.Generator().manual_seed(1)) < 0.3
    for targets in (torch.arange(5), TARGETS):
        with evidence_of(model, pictures(3), targets) as evidence:
            weights = QUICK[base].weights(evidence)
        whole, chosen, others = (
            part.saliency(evidence.activation)
            for part in (weights, weights.masked(mask[targets]), weights.masked(~mask[targets]))
        )
        assert not torch.allclose(chosen, whole)
        torch.testing.assert_close(chosen + others, whole, rtol=1e-5, atol=1e-6)


def test_a_silent_feature_gets_no_weight_from_its_activation():
    model = small(pooled_head())
    with torch.no_grad():
        model.module.trunk[2].weight[4] = 0
        model.module.trunk[2].bias[4] = 0
    for base in QUICK:
        found, _ = saliency_of(model, base, torch.arange(5))
        assert torch.isfinite(found).all()
