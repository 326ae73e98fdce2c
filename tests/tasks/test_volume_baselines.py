"""The baselines on volumes, all synthetic: a real 3-D network, and planted evidence in three dimensions."""

from itertools import product

import numpy as np
import pytest
import torch

from tasks.baselines import InputGradient, LimeMap, MeaningfulPerturbation, OcclusionMap, RiseMap
from tasks.cams.names import MethodName
from tasks.explain import ExplainSettings, explain_shard
from tests.tasks.small_classifiers import names, some_truth
from tests.tasks.test_volumes import any_head, deep_model, volumes

QUICK = {
    "occlusion": OcclusionMap(2, 1, axes=3),
    "rise": RiseMap(20, 3),
    "lime": LimeMap(40, 2),
    "gradient": InputGradient(),
    "meaningful-perturbation": MeaningfulPerturbation(3, 5),
}
DARK = -0.5


def explained(model, images, name, size):
    settings = ExplainSettings((MethodName(name),), "all", 3, map=size, rules=QUICK)
    truth = some_truth(len(images), 3)
    done = explain_shard(model, images, names(images), truth, settings, limits={}, masks={})
    assert not done.failures
    return done.maps[name].astype(np.float32)


@pytest.mark.parametrize(("size", "expected"), [("native", (4, 3, 5)), ("input", (8, 6, 10)), ((5, 7, 6), (5, 7, 6))])
@pytest.mark.parametrize("name", QUICK)
def test_every_baseline_has_maps_of_volumes(name, size, expected):
    found = explained(deep_model(any_head()), volumes(2), name, size)
    assert found.shape == (2, 3, *expected)
    assert np.isfinite(found).all()
    assert found.std() > 0


def test_occlusion_hides_cubes():
    model, images = deep_model(any_head()), volumes(1)
    found = explained(model, images, "occlusion", "input")[0]
    (volume,) = model.preprocess(images, model.device)
    with torch.no_grad():
        whole = model.module(volume[None]).softmax(1)[0]
        for corner in product((0, 1), repeat=3):
            here = tuple(slice(c * side // 2, (c + 1) * side // 2) for c, side in zip(corner, (8, 6, 10), strict=True))
            hidden = volume.clone()
            hidden[(0, *here)] = DARK
            drop = whole - model.module(hidden[None]).softmax(1)[0]
            for target in range(3):
                np.testing.assert_allclose(found[(target, *here)], float(drop[target]), rtol=2e-3, atol=1e-6)
    assert QUICK["occlusion"].forwards(8, "autograd") == 2**3 + 1


def test_the_gradient_is_that_of_autograd():
    model, images = deep_model(any_head()), volumes(2)
    found = explained(model, images, "gradient", "input")
    inputs = model.preprocess(images, model.device).requires_grad_()
    (expected,) = torch.autograd.grad(model.module(inputs)[:, 1].sum(), inputs)
    np.testing.assert_allclose(found[:, 1], expected[:, 0].abs().numpy(), rtol=2e-3, atol=1e-6)
