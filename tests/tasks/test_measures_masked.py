"""Average Drop and Increase in Confidence, against two libraries once what these add is undone.

Ours is the relative drop of the probability, of the input masked towards the dark level. Inputs here have their dark
level at 0, where the libraries mask to, whatever 0 means.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_grad_cam import GradCAM as PytorchGradCam
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from torchcam.methods import GradCAM as TorchCam
from torchcam.metrics import ClassificationMetric

from tasks.cams.rules import RULES
from tasks.cams.scaling import individual, resized
from tasks.measures.masked import drop, increase
from tests.tasks.small_classifiers import deep_head, evidence_of, from_torchvision, pictures, pixels, small

COUNT = 4
SOFTMAX = partial(torch.softmax, dim=-1)


@pytest.fixture(scope="module", params=["resnet18", "deep head"])
def model(request):
    made = from_torchvision("resnet18") if request.param == "resnet18" else small(deep_head())
    made.module.requires_grad_(True)  # as the libraries need it
    return replace(made, preprocess=replace(made.preprocess, mean=(0.0,) * 3))


@pytest.fixture(scope="module")
def shown(model):
    """Pictures dark in places, so that probabilities both rise and fall when they are masked."""
    random = np.random.default_rng(1)
    return [image * random.integers(0, 2, image.shape, np.uint8) for image in pictures(COUNT, size=side(model))]


@pytest.fixture(scope="module")
def judged(model, shown):
    """Classes, Grad-CAM in [0, 1] at native size and at input size, Y and O."""
    with evidence_of(model, shown, torch.arange(COUNT)[:, None]) as evidence:
        probes, classes = evidence.probes, evidence.classes
        native = individual(RULES["grad-cam"].weights(evidence).saliency(evidence.activation), axes=2)
        maps = resized(native, (side(model),) * 2)
        before = probes.probabilities.gather(1, classes)[:, 0]
        after = probes.predict(probes.behind(torch.arange(COUNT), maps)).gather(1, classes)[:, 0]
    assert 0 < (after > before).sum() < COUNT
    return classes[:, 0].tolist(), native[:, 0], maps[:, 0], before, after


def side(model):
    return model.preprocess.size[0]


class OfTheLogit(TorchCam):
    """Explains the last logits, whatever scores it is handed."""

    def __init__(self, model):
        super().__init__(model.module, model.module.get_submodule(model.layer))
        self.hook_handles.append(model.module.register_forward_hook(self._remember))

    def _remember(self, _module, _inputs, logits):
        self._logits = logits

    def __call__(self, class_idx, _scores):
        return super().__call__(class_idx, self._logits)


def measured(extractor, model, image, target):
    """[average drop, increase] of one image by torchcam, softmax being its function for the logits."""
    with extractor:
        metric = ClassificationMetric(extractor, SOFTMAX)
        metric.update(pixels(model, [image]), target)
    return list(metric.summary().values())


def test_drop_and_increase_are_torchcams_but_for_an_eps_in_its_division_and_what_it_explains(model, shown, judged):
    """torchcam scales its map at native size, as we do, then upsamples; it divides by Y + 1e-7. Handed a softmax, it
    explains the probability with it, whose Grad-CAM is another one than the logit's."""
    classes, _, _, before, after = judged
    expected = torch.stack([drop(before, after) * before / (before + 1e-7), increase(before, after)], 1).numpy()
    pairs = list(zip(shown, classes, strict=True))
    found = [measured(OfTheLogit(model), model, *pair) for pair in pairs]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    layer = model.module.get_submodule(model.layer)
    other = [measured(TorchCam(model.module, layer), model, *pair) for pair in pairs]
    assert np.abs(np.subtract(other, expected)).max() > 1e-3


def test_torchcam_without_a_function_for_the_logits_divides_logits(model, shown, judged):
    """Then a drop is no part of anything: with a negative logit it is negative."""
    classes, _, maps, _, _ = judged
    inputs = pixels(model, shown)
    with torch.no_grad():
        before, after = (model.module(x)[torch.arange(COUNT), classes] for x in (inputs, inputs * maps[:, None]))
    with TorchCam(model.module, model.module.get_submodule(model.layer)) as extractor:
        metric = ClassificationMetric(extractor)
        metric.update(inputs, classes)
    expected = ((before - after).relu() / (before + 1e-7)).mean().item()
    assert metric.summary()["avg_drop"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert metric.summary()["avg_drop"] != pytest.approx(drop(*judged[3:]).mean().item(), rel=1e-2)


def test_pytorch_grad_cams_drop_is_ours_times_the_probability_if_it_is_given_softmax_targets(model, shown, judged):
    """It divides by nothing: its drop is absolute."""
    classes, _, maps, before, after = judged
    inputs, cams = pixels(model, shown), maps.numpy()
    targets = [ClassifierOutputSoftmaxTarget(index) for index in classes]
    fell = DropInConfidence()(inputs, cams, targets, model.module)
    rose = IncreaseInConfidence()(inputs, cams, targets, model.module)
    np.testing.assert_allclose(fell, drop(before, after) * before, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(rose, increase(before, after))


def test_pytorch_grad_cams_usual_target_takes_logits(model, shown, judged):
    classes, _, maps, before, after = judged
    inputs = pixels(model, shown)
    targets = [ClassifierOutputTarget(index) for index in classes]
    found = DropInConfidence()(inputs, maps.numpy(), targets, model.module)
    with torch.no_grad():
        logits = model.module(inputs) - model.module(inputs * maps[:, None])
    expected = logits[torch.arange(COUNT), classes].relu()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found - (drop(before, after) * before).numpy()).max() > 1e-3


@pytest.mark.parametrize("model", ["deep head"], indirect=True)
def test_pytorch_grad_cam_scales_its_maps_twice_so_that_they_mask_less_than_ours(model, shown, judged):
    """To [0, 1] at native size as we do, and once more after upsampling, when the maximum is below 1."""
    classes, native, maps, _, _ = judged
    with PytorchGradCam(model.module, [model.module.get_submodule(model.layer)]) as camera:
        found = torch.from_numpy(camera(pixels(model, shown), [ClassifierOutputTarget(index) for index in classes]))
    torch.testing.assert_close(found, individual(maps, axes=2), rtol=1e-3, atol=1e-3)
    assert (found.amax((1, 2)) > maps.amax((1, 2)) + 1e-3).any()
    assert native.amax((1, 2)).tolist() == [1.0] * COUNT


def test_the_dark_level_is_what_is_masked_to_and_not_the_0_of_the_normalised_input():
    """0 is the mean grey of most models: there the libraries' numbers are not ours."""
    model = small(deep_head())
    with evidence_of(model, pictures(2), torch.tensor([0])) as evidence:
        nothing = torch.zeros(2, 1, 16, 16)
        hidden = evidence.probes.predict(evidence.probes.behind(torch.arange(2), nothing))
        black = evidence.probes.predict(pixels(model, [np.zeros((16, 16, 3), np.uint8)]))
        grey = evidence.probes.predict(torch.zeros(1, 3, 16, 16))
    torch.testing.assert_close(hidden, black.expand(2, -1))
    assert not torch.allclose(black, grey, atol=1e-3)


PROBABILITIES = st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 2), min_size=1, max_size=20)


@given(PROBABILITIES)
def test_drop_is_the_share_of_the_probability_that_is_lost_and_never_beside_an_increase(pairs):
    before, after = torch.tensor(pairs).T
    fell, rose = drop(before, after), increase(before, after)
    assert fell.dtype == rose.dtype == torch.float64
    assert ((fell >= 0) & (fell <= 1)).all()
    assert not ((fell > 0) & (rose > 0)).any()
    for y, o, found in zip(before.tolist(), after.tolist(), fell.tolist(), strict=True):
        assert found == (max(y - o, 0) / y if y else 0)


def test_a_probability_that_underflowed_to_0_has_nothing_to_lose():
    before, after = torch.zeros(2), torch.tensor([0.0, 0.5])
    assert drop(before, after).tolist() == [0, 0]
    assert increase(before, after).tolist() == [0, 1]
