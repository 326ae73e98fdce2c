"""Every CAM method against an independent computation: a library where its definition is ours, plain loops else."""

import numpy as np
import pytest
import torch
from pytorch_grad_cam import AblationCAM, LayerCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection
from torch.nn.functional import interpolate
from torchcam import methods as torchcam_methods

from tasks.cams.eigen import leading_direction
from tasks.cams.heads import Head
from tasks.cams.names import BASE_METHODS, FEATURE_METHODS, MEMORY_METHODS
from tasks.cams.rules import RULES, IsCam, ScoreCam, SmoothGradCamPlusPlus, SsCam
from tasks.methods import METHODS
from tests.tasks.small_classifiers import (
    QUICK,
    classifier,
    deep_head,
    evidence_of,
    from_torchvision,
    in_place_relu_head,
    names,
    pictures,
    pixels,
    pooled_head,
    small,
)
from tests.tasks.test_rules import WithoutInPlaceRelu

ARCHITECTURES = ["resnet18", "densenet121"]
narrow = pytest.mark.parametrize(
    "model", ["short resnet", "narrow densenet"], indirect=True
)  # a forward for each feature
TARGETS = torch.tensor([[0], [3], [1]])
HEADS = [pooled_head, in_place_relu_head, deep_head]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request):
    return from_torchvision(request.param)


@pytest.fixture
def subject(model):
    """The same weights in a module that the libraries read correctly: trainable, nothing in place at the layer."""
    module = WithoutInPlaceRelu(model.module) if model.layer.startswith("features") else model.module
    module.requires_grad_(True)
    yield module.eval()
    module.requires_grad_(False)
    module.zero_grad(set_to_none=True)


def weights_of(model, rule, targets=TARGETS, count=3, head=None):
    with evidence_of(model, pictures(count, size=model.preprocess.size[0]), targets, head, step=32) as evidence:
        return rule.weights(evidence), evidence


def assert_close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=tolerance * np.abs(expected).max())


def activation_and_gradient(subject, layer, images, targets=TARGETS):
    with LayerCAM(subject, [subject.get_submodule(layer)]) as camera:
        kept = camera.activations_and_grads
        kept(images).gather(1, targets).sum().backward()
        return kept.activations[0].numpy(), kept.gradients[0].numpy()


def test_there_is_a_rule_for_every_name():
    assert tuple(RULES) == FEATURE_METHODS
    assert tuple(METHODS) == tuple(base for base in BASE_METHODS if base not in MEMORY_METHODS)


def test_cam_is_the_linear_layers_weights_as_torchcam_has_them():
    model = from_torchvision("resnet18")
    images = pixels(model, pictures(3, size=64))
    with torchcam_methods.CAM(model.module, "layer4", fc_layer="fc") as camera:
        camera._relu = False
        (expected,) = camera(TARGETS[:, 0].tolist(), model.module(images), normalized=False)
    weights, evidence = weights_of(model, RULES["cam"])
    assert_close(weights.saliency(evidence.activation)[:, 0], expected.numpy())


def test_cam_behind_a_relu_weighs_what_the_relu_lets_through():
    model = from_torchvision("densenet121")
    weights, evidence = weights_of(model, RULES["cam"])
    by_class = model.module.classifier.weight[TARGETS[:, 0]]
    expected = torch.einsum("bf,bfhw->bhw", by_class, evidence.activation.relu())
    assert_close(weights.saliency(evidence.activation)[:, 0], expected.numpy())


def test_layer_cam_is_pytorch_grad_cams_and_torchcams(model, subject):
    images = pixels(model, pictures(3, size=64))
    activation, gradient = activation_and_gradient(subject, model.layer, images)
    weights, evidence = weights_of(model, RULES["layer-cam"])
    found = weights.saliency(evidence.activation)[:, 0].numpy()
    assert_close(found, (np.maximum(gradient, 0) * activation).sum(1))
    with torchcam_methods.LayerCAM(subject, subject.get_submodule(model.layer)) as camera:
        camera._relu = False
        (expected,) = camera(TARGETS[:, 0].tolist(), subject(images), normalized=False)
    assert_close(found, expected.detach().numpy())


@pytest.mark.parametrize("base", ["eigen-cam", "eigen-grad-cam"])
def test_eigen_maps_are_pytorch_grad_cams_but_for_their_mean_and_a_fixed_sign(model, subject, base):
    """The library projects the centred features, so its maps have mean 0 and any sign. Ours are sums over features
    of weight times activation, as every map here is, so that features add up; the two differ by a constant."""
    images = pixels(model, pictures(3, size=64))
    activation, gradient = activation_and_gradient(subject, model.layer, images)
    expected = get_2d_projection(activation if base == "eigen-cam" else activation * gradient)
    weights, evidence = weights_of(model, RULES[base])
    maps = weights.saliency(evidence.activation)[:, 0].numpy()
    assert (maps.sum((1, 2)) >= 0).all()
    centred = maps - maps.mean((1, 2), keepdims=True)
    sign = np.sign((centred * expected).sum((1, 2), keepdims=True))
    assert_close(centred, sign * expected, 1e-3)


@narrow
def test_ablation_weights_are_pytorch_grad_cams(model, subject):
    images = pixels(model, pictures(3, size=64))
    layer = subject.get_submodule(model.layer)
    activation, _ = activation_and_gradient(subject, model.layer, images)
    camera = AblationCAM(subject, [layer])
    targets = [ClassifierOutputTarget(int(index)) for index in TARGETS[:, 0]]
    expected = camera.get_cam_weights(images, layer, targets, activation, None)
    camera.activations_and_grads.release()
    for head in (None, Head(None, 1e-5)):  # the closed form, and the head run once a feature
        weights, _ = weights_of(model, RULES["ablation-cam"], head=head)
        assert_close(weights.dense().values[:, 0, :, 0, 0].numpy(), expected, 1e-3)


class UpsampledAsEverywhereElse:
    """In the place of pytorch-grad-cam's upsampling, which aligns corners."""

    def __init__(self, size):
        self.size = tuple(size)

    def __call__(self, activation):
        return interpolate(activation, self.size, mode="bilinear", align_corners=False)


@narrow
def test_score_weights_are_pytorch_grad_cams_but_for_aligned_corners(model, subject, monkeypatch):
    monkeypatch.setattr(torch.nn, "UpsamplingBilinear2d", UpsampledAsEverywhereElse)
    images = pixels(model, pictures(1, size=64))
    layer = subject.get_submodule(model.layer)
    activation, _ = activation_and_gradient(subject, model.layer, images, TARGETS[:1])
    camera = ScoreCAM(subject, [layer])
    targets = [ClassifierOutputTarget(int(index)) for index in TARGETS[:1, 0]]
    expected = camera.get_cam_weights(images, layer, targets, activation, None)
    camera.activations_and_grads.release()
    weights, _ = weights_of(model, ScoreCam(), TARGETS[:1], 1)
    np.testing.assert_allclose(weights.values[:, 0, :, 0, 0].numpy(), expected, rtol=2e-3)


def scaled(maps):
    low, high = (getattr(maps, end)((-2, -1), keepdim=True) for end in ("amin", "amax"))
    return (maps - low) / (high - low).clamp(min=1e-30)


@narrow
@pytest.mark.parametrize(("name", "rule"), [("SSCAM", SsCam(1, 0.5)), ("ISCAM", IsCam(1))])
def test_masking_weights_are_torchcams_once_it_scales_the_mask_and_not_the_feature(
    model, subject, monkeypatch, name, rule
):
    """torchcam scales a feature to [0, 1] and then upsamples it, which no longer fills [0, 1]. The papers upsample
    first, and so do we. IS-CAM's masks are compared at one step: from two on torchcam adds the shares up, so that its
    masks leave [0, 1], where the paper's integral ends at the whole mask."""
    shown = pictures(1, size=64)
    images = pixels(model, shown)
    options = {"std": 0.5} if name == "SSCAM" else {}
    layer = subject.get_submodule(model.layer)
    extractor = getattr(torchcam_methods, name)(subject, layer, num_samples=1, **options)
    monkeypatch.setattr(extractor, "_normalize", lambda activation, *_: activation)
    monkeypatch.setattr(extractor, "_upsample", lambda a: scaled(interpolate(a, images.shape[2:], mode="bilinear")))
    if name == "SSCAM":
        with evidence_of(model, shown, TARGETS[:1]) as evidence:
            count = evidence.activation.shape[1]
            noise = torch.stack([evidence.probes._noise(f"mask|0|{f}", 0, (64, 64)) for f in range(count)])[None]
        monkeypatch.setattr(extractor._distrib, "sample", lambda _: 0.5 * noise)
    with extractor, torch.no_grad():
        subject(images)
        (expected,) = extractor._get_weights(TARGETS[:1, 0].tolist())
    weights, _ = weights_of(model, rule, TARGETS[:1], 1)
    np.testing.assert_allclose(weights.values[:, 0, :, 0, 0].numpy(), expected.numpy(), rtol=5e-3)


@pytest.mark.parametrize("rule", [IsCam(3), SsCam(3, 0.7)])
def test_varied_masks_are_what_plain_loops_make_of_them(rule):
    model, images = small(deep_head()), pictures(2)
    batch = pixels(model, images)
    weights, evidence = weights_of(model, rule, torch.arange(5), count=2)
    expected = torch.zeros(2, 5, 12)
    for b, name in enumerate(names(images)):
        for f in range(12):
            mask = scaled(interpolate(evidence.activation[b : b + 1, f : f + 1], (16, 16), mode="bilinear"))
            if isinstance(rule, IsCam):
                masks = [mask * share for share in (1 / 3, 2 / 3, 1.0)]
            else:
                noise = [evidence.probes._noise(f"mask|{draw}|{f}", b, (1, 16, 16)) for draw in range(3)]
                assert not torch.equal(noise[0], noise[1]), name
                masks = [mask + 0.7 * one for one in noise]
            expected[b, :, f] = torch.stack([model.module(batch[b : b + 1] * one)[0] for one in masks]).mean(0)
    torch.testing.assert_close(weights.values[..., 0, 0], expected.softmax(-1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_smooth_weights_are_what_plain_loops_make_of_the_noisy_gradients(head):
    model, draws = small(head()), 3
    images = pictures(2)
    weights, evidence = weights_of(model, SmoothGradCamPlusPlus(draws, 0.4), torch.arange(5), count=2)
    batch = pixels(model, images)
    gradients = torch.zeros(draws, 2, 5, *evidence.activation.shape[1:])
    for draw in range(draws):
        noise = torch.stack([evidence.probes._noise(f"input|{draw}", b, (3, 16, 16)) for b in range(2)])
        leaf = model.module.trunk(batch + 0.4 * noise).detach().requires_grad_()
        logits = model.module.head(leaf.clone())
        for index in range(5):
            (gradients[draw, :, index],) = torch.autograd.grad(logits[:, index].sum(), leaf, retain_graph=True)
    first, square, cube = gradients.mean(0), (gradients**2).mean(0), (gradients**3).mean(0)
    total = evidence.activation.sum((2, 3), keepdim=True)[:, None]
    expected = (first.relu() * square / (2 * square + total * cube + 1e-6)).sum((3, 4))
    torch.testing.assert_close(weights.values[..., 0, 0], expected, rtol=1e-3, atol=1e-5)


def test_smooth_weights_of_one_draw_are_torchcams_where_the_gradient_is_one_in_all_cells(monkeypatch):
    """Elsewhere the definitions part. torchcam's sum in the denominator is that of A times g^3, the paper's that of A
    alone, and from two draws on it rectifies the last draw's gradient, where the paper rectifies the mean."""
    model = from_torchvision("resnet18")
    model.module.requires_grad_(True)
    images = pixels(model, pictures(3, size=64))
    weights, evidence = weights_of(model, SmoothGradCamPlusPlus(1, 0.3, eps=1e-8))
    noise = torch.stack([evidence.probes._noise("input|0", b, (3, 64, 64)) for b in range(3)])
    with torchcam_methods.SmoothGradCAMpp(model.module, "layer4", num_samples=1) as camera:
        monkeypatch.setattr(camera._distrib, "sample", lambda _: 0.3 * noise)
        model.module(images)
        (expected,) = camera._get_weights(TARGETS[:, 0].tolist())
    assert_close(weights.dense().values[:, 0, :, 0, 0].numpy(), expected.detach().numpy(), 1e-3)


@pytest.mark.parametrize("base", ["smooth-grad-cam++", "ss-cam"])
def test_noise_follows_from_the_image_and_not_from_its_place_or_batch(base):
    model, images = small(deep_head()), pictures(4)
    with evidence_of(model, images, torch.arange(5), step=5) as evidence:
        together = QUICK[base].weights(evidence).saliency(evidence.activation)
    with evidence_of(model, [images[2], images[0]], torch.arange(5), step=3) as evidence:
        apart = QUICK[base].weights(evidence).saliency(evidence.activation)
    torch.testing.assert_close(apart, together[[2, 0]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", [base for base in FEATURE_METHODS if base not in ("cam", "eigen-cam")])
def test_all_classes_together_are_each_alone(base):
    model = small(deep_head())
    whole, evidence = weights_of(model, QUICK[base], torch.arange(5))
    for index in range(5):
        alone, _ = weights_of(model, QUICK[base], torch.full((3, 1), index))
        torch.testing.assert_close(
            whole.saliency(evidence.activation)[:, index],
            alone.saliency(evidence.activation)[:, 0],
            rtol=1e-4,
            atol=1e-5,
        )


def test_a_masked_forward_serves_every_class_and_every_method_that_asks(monkeypatch):
    model = small(deep_head())
    with evidence_of(model, pictures(2), torch.arange(5), step=4) as evidence:
        forwards = []
        logits = evidence.probes._capture.logits
        monkeypatch.setattr(
            evidence.probes._capture, "logits", lambda batch: forwards.append(len(batch)) or logits(batch)
        )
        ScoreCam().weights(evidence)
        ScoreCam().weights(evidence)
        assert sum(forwards) == 2 * 12
        IsCam(3).weights(evidence)
    assert sum(forwards) == 2 * 12 + 3 * 2 * 12


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("base", FEATURE_METHODS)
def test_the_forwards_a_rule_says_it_costs_are_those_it_makes(base, head, monkeypatch):
    model = small(head())
    with evidence_of(model, pictures(2), torch.arange(5), step=5) as evidence:
        forwards = []
        hook = model.module.register_forward_pre_hook(lambda _, inputs: forwards.append(len(inputs[0])))
        QUICK[base].weights(evidence)
        hook.remove()
        said = QUICK[base].forwards(12, evidence.head.name)
    if base == "ablation-cam":  # an upper bound: the trunk sees each image once for every five features
        assert sum(forwards) == (0 if said == 0 else 2 * 3) <= 2 * said
    else:
        assert sum(forwards) == 2 * said


def test_a_direction_of_what_is_not_finite_is_not_a_number_and_costs_no_other():
    features = torch.randn(3, 4, 9, generator=torch.Generator().manual_seed(0))
    alone = leading_direction(features[[0, 2]])
    features[1, 2, 3] = torch.nan
    found = leading_direction(features)
    assert found[1].isnan().all()
    torch.testing.assert_close(found[[0, 2]], alone)


def test_a_leading_direction_is_numpys_and_has_a_sign():
    features = torch.randn(3, 7, 20, generator=torch.Generator().manual_seed(0))
    for values in (features, features.mT.contiguous(), features - 5):
        found = leading_direction(values)
        for matrix, direction in zip(values.numpy(), found.numpy(), strict=True):
            centred = matrix.T - matrix.T.mean(0)
            expected = np.linalg.svd(centred, full_matrices=False)[2][0]
            np.testing.assert_allclose(np.abs(direction @ expected), 1, rtol=1e-5)
            assert direction @ matrix.sum(1) >= 0
            np.testing.assert_allclose(np.linalg.norm(direction), 1, rtol=1e-5)


def test_features_that_do_not_vary_have_no_direction():
    assert torch.equal(leading_direction(torch.ones(2, 3, 4)), torch.zeros(2, 3))


class JoinedWithTheImage(torch.nn.Module):
    """The layer's output is joined with another tensor of the image, so that it cannot stand for several."""

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Conv2d(3, 6, 4, stride=4)
        self.beside = torch.nn.Conv2d(3, 2, 4, stride=4)
        self.head = torch.nn.Sequential(
            torch.nn.Conv2d(8, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(5)
        )

    def forward(self, images):
        return self.head(torch.cat([self.trunk(images), self.beside(images)], 1))


def test_a_layer_that_is_joined_with_others_is_ablated_all_the_same():
    torch.manual_seed(0)
    module = JoinedWithTheImage()
    module(torch.zeros(1, 3, 16, 16))
    model = classifier(module, "trunk")
    weights, evidence = weights_of(model, RULES["ablation-cam"], torch.arange(5))
    batch = pixels(model, pictures(3))
    for f in range(6):
        activation = module.trunk(batch)
        activation[:, f] = 0
        without = module.head(torch.cat([activation, module.beside(batch)], 1))
        expected = (evidence.forward.logits - without) / evidence.forward.logits
        torch.testing.assert_close(weights.values[:, :, f, 0, 0], expected, rtol=1e-3, atol=1e-5)
    assert evidence.probes._capture._channels_last  # it was not the layout's fault
