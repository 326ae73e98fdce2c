"""Insertion and deletion, against RISE's definition in a plain loop, torchcam, and scipy's blur; images and volumes."""

from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torchcam.metrics import DeletionInsertionMetric

from tasks.classifier import Classifier
from tasks.measures.curves import BLUR, area, blurred, insertion_and_deletion, order, replaced
from tasks.preprocess import Preprocess
from tests.tasks.small_classifiers import CPU, TwoLayers, classifier, deep_head, evidence_of, pictures, small

IMAGES = torch.tensor([0, 0, 3, 2, 3])  # of five cases; nothing is asked of image 1
CLASSES = torch.tensor([0, 3, 3, 1, 4])


class OfVolumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Conv3d(1, 4, 3, padding=1)
        self.head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 6 * 10, 5))

    def forward(self, volumes):
        return self.head(self.trunk(volumes))


@pytest.fixture(params=["images", "volumes"])
def model_and_inputs(request):
    torch.manual_seed(0)
    if request.param == "images":
        return small(deep_head()), pictures(4)
    preprocess = Preprocess(None, (4, 6, 10), 1, (0.5,), (0.25,))
    classes = tuple("abcde")
    model = Classifier(OfVolumes().eval().requires_grad_(False), "trunk", classes, "one-label", preprocess, CPU)
    random = np.random.default_rng(0)
    return model, [random.random((4, 6, 10, 1), np.float32) for _ in range(4)]


def maps_of(model):
    """No two cells alike."""
    size = model.preprocess.size
    draws = [torch.randperm(int(np.prod(size)), generator=torch.Generator().manual_seed(i)) for i in range(5)]
    return torch.stack(draws).float().view(5, *size) / int(np.prod(size))


def measured(model, inputs, maps, steps):
    """Insertion and deletion [n], and the inputs, dark level and blurred inputs that they were made with."""
    with evidence_of(model, inputs, CLASSES[:1]) as evidence:
        probes = evidence.probes
        found = insertion_and_deletion(probes, maps, IMAGES, CLASSES, steps=steps)
        return found, probes.pixels, probes.dark, blurred(probes.pixels)


def rise(model, start, end, maps, target, step):
    """The paper's: a step of pixels after another, the map's highest first; the area as its authors sum it up."""
    cells = maps.size
    salient = np.flip(np.argsort(maps.reshape(-1)))
    now, scores = start.reshape(len(start), cells).copy(), []
    for first in range(0, cells + 1, step):
        with torch.no_grad():
            logits = model.module(torch.from_numpy(now.reshape(1, *start.shape)))
        scores.append(logits.softmax(1)[0, target].item())
        now[:, salient[first : first + step]] = end.reshape(len(end), cells)[:, salient[first : first + step]]
    scores = np.array(scores)
    return (scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)


def test_both_areas_are_those_of_rise(model_and_inputs):
    model, inputs = model_and_inputs
    maps = maps_of(model)
    (insertion, deletion), pixels, dark, soft = measured(model, inputs, maps, 8)
    assert insertion.dtype == deletion.dtype == torch.float64
    black = dark.view(-1, *[1] * (pixels.ndim - 2)).expand_as(pixels[0]).numpy().copy()
    step = maps[0].numel() // 8
    for case, (image, target) in enumerate(zip(IMAGES.tolist(), CLASSES.tolist(), strict=True)):
        whole, unsharp, saliency = pixels[image].numpy(), soft[image].numpy(), maps[case].numpy()
        assert insertion[case].item() == pytest.approx(rise(model, unsharp, whole, saliency, target, step), abs=1e-6)
        assert deletion[case].item() == pytest.approx(rise(model, whole, black, saliency, target, step), abs=1e-6)
    assert not torch.allclose(insertion, deletion, atol=1e-3)


class Given:
    """Stands for torchcam's extractor: the maps are ours."""

    def __init__(self, module, maps):
        self.model, self._maps = module, maps

    def __call__(self, _class_idx, _scores):
        return [self._maps]

    def fuse_cams(self, maps):
        return maps[0]

    def _hooks_off(self):
        return nullcontext()


SOFTMAX = partial(torch.softmax, dim=-1)


def torchcams(model, inputs, maps, steps, baseline, logits_fn=SOFTMAX):
    metric = DeletionInsertionMetric(Given(model.module, maps), logits_fn, steps=steps, baseline=baseline)
    metric.update(inputs[IMAGES], CLASSES.tolist())
    return metric.summary()


def test_both_areas_are_torchcams_with_our_ends_and_a_softmax(model_and_inputs):
    """torchcam has one end for both curves, 0 in the normalised input unless it is told another, and takes logits
    unless it is handed a softmax. Ties break alike, so that maps with few values agree too."""
    model, inputs = model_and_inputs
    maps = maps_of(model).mul(3).floor()
    (insertion, deletion), pixels, dark, soft = measured(model, inputs, maps, 8)
    black = dark.view(1, -1, *[1] * (pixels.ndim - 2))
    compare = partial(torchcams, model, pixels, maps, 8)
    assert compare(soft[IMAGES])["insertion_auc"] == pytest.approx(insertion.mean().item(), abs=1e-6)
    assert compare(black)["deletion_auc"] == pytest.approx(deletion.mean().item(), abs=1e-6)
    assert compare(None)["deletion_auc"] != pytest.approx(deletion.mean().item(), abs=1e-3)
    assert compare(black, None)["deletion_auc"] != pytest.approx(deletion.mean().item(), abs=1e-3)


def test_steps_that_do_not_divide_the_pixels_are_equal_to_a_pixel_where_torchcam_has_a_shorter_last_one():
    model, inputs = small(deep_head()), pictures(4)
    (_, deletion), pixels, dark, _ = measured(model, inputs, maps_of(model), 20)
    expected = torchcams(model, pixels, maps_of(model), 20, dark.view(1, -1, 1, 1))["deletion_auc"]
    assert deletion.mean().item() == pytest.approx(expected, abs=2e-3)
    images = torch.zeros(1, 1, 16, 16)
    steps = replaced(images, images + 1, order(maps_of(model)[:1]), steps=20, chunk=3)
    assert [int(one.sum()) for part in steps for one in part] == [i * 256 // 20 for i in range(1, 20)]


def test_the_highest_cell_is_the_first_and_equal_ones_come_in_reading_order():
    maps = torch.tensor([[[0.0, 2.0], [1.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]]])
    assert order(maps).tolist() == [[3, 0, 2, 1], [0, 1, 2, 3]]
    random = torch.randint(0, 9, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).float()
    for ranks, one in zip(order(random), random.flatten(1).tolist(), strict=True):
        expected = sorted(range(60), key=lambda cell, one=one: (-one[cell], cell))
        assert [int(ranks[cell]) for cell in expected] == list(range(60))


@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_inputs_come_in_chunks_step_after_step_and_without_the_ends(steps, chunk):
    start, end = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    ranks = order(torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0)))
    parts = list(replaced(start, end, ranks, steps=steps, chunk=chunk))
    assert max(map(len, parts)) <= chunk
    inputs = torch.cat(parts).unflatten(0, (steps - 1, 2))
    for index, step in enumerate(inputs, start=1):
        taken = (ranks < index * 20 // steps).view(2, 1, 4, 5)
        torch.testing.assert_close(step, torch.where(taken, end, start))


def test_the_area_is_numpys():
    scores = np.random.default_rng(0).random((21, 4))
    np.testing.assert_allclose(area(torch.from_numpy(scores)), np.trapezoid(scores, np.linspace(0, 1, 21), axis=0))
    assert area(torch.full((5, 2), 0.25)).tolist() == [0.25, 0.25]


@pytest.mark.parametrize("size", [(224,), (40, 64), (7, 30, 50)])
@pytest.mark.parametrize("share", [BLUR, 0.2])
def test_the_blur_is_scipys_along_each_axis_of_each_channel(size, share):
    pixels = np.random.default_rng(0).normal(size=(2, 3, *size))
    expected = gaussian_filter(pixels, [0, 0, *(share * side for side in size)], mode="nearest", truncate=4)
    np.testing.assert_allclose(blurred(torch.from_numpy(pixels), share), expected, atol=1e-12)


def test_ends_are_asked_once_for_all_maps_and_the_rest_2_times_steps_less_1_a_map():
    model, steps = small(deep_head()), 6
    asked = []
    model.module.register_forward_hook(lambda _module, inputs, _output: asked.append(len(inputs[0])))
    with evidence_of(model, pictures(4), CLASSES[:1], step=4) as evidence:
        asked.clear()
        insertion_and_deletion(evidence.probes, maps_of(model), IMAGES, CLASSES, steps=steps)
        assert sum(asked) == 2 * (steps - 1) * 5 + 3 + 1
        assert max(asked) == 4
        asked.clear()
        insertion_and_deletion(evidence.probes, -maps_of(model), IMAGES, CLASSES, steps=steps)
        assert sum(asked) == 2 * (steps - 1) * 5


class Rough(nn.Module):
    """Class 1 is there if the upper left quarter of each side is rough."""

    def forward(self, activation):
        roughness = activation[:, :, :32, :32].diff(dim=3).abs().mean((1, 2, 3))
        return torch.stack([torch.full_like(roughness, 2.0), roughness], 1)


def test_a_map_of_the_evidence_is_judged_better_than_its_opposite_by_both_curves(device):
    module = TwoLayers(Rough())
    module.trunk = nn.Identity()
    model = classifier(module, "trunk", classes=2, size=128, device=device)
    checks = 255 * (np.indices((128, 128)).sum(0) % 2)[..., None].repeat(3, 2).astype(np.uint8)
    maps = torch.zeros(2, 128, 128, device=device)
    maps[0, :32, :32] = 1
    maps[1] = 1 - maps[0]
    both = torch.zeros(2, dtype=torch.int64, device=device)
    with evidence_of(model, [checks], both[:1]) as evidence:
        insertion, deletion = insertion_and_deletion(evidence.probes, maps, both, both + 1, steps=16)
    assert insertion[0] > insertion[1] + 0.3
    assert deletion[0] < deletion[1] - 0.3
