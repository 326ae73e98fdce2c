"""M-CAM's rule, with memories whose content is random: the arithmetic, not what a fitted memory finds."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from tasks.cams.mcam import MCam
from tasks.memory import Memory, pooled
from tasks.slots import find_slots, noise_cosines
from tests.tasks.small_classifiers import deep_head, evidence_of, names, pictures, small
from tests.tasks.test_volumes import deep_model, volumes


def memory_of(classes, cells, features, slots=6):
    return Memory.seeded(4, features, cells, classes, slots=slots)


def memory_gradient(memory, activation, target):
    """dz_c/dA of the memory's own answer, by autograd, through the mean and the address."""
    leaf = activation.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(memory(pooled(leaf))[:, target].sum(), leaf)
    return gradient


def test_a_weight_is_the_summed_gradient_times_the_likeness_to_the_classes_slot():
    memory, images = memory_of(5, (4, 4), 12), pictures(3)
    with evidence_of(small(deep_head()), images, torch.arange(5)) as evidence:
        weights = MCam(memory).weights(evidence).values[..., 0, 0]
        activation = evidence.activation
    found = find_slots(memory, pooled(activation), noise_cosines(names(images), 12, 6))
    for image in range(3):
        for target in range(5):
            summed = memory_gradient(memory, activation, target)[image].sum((1, 2))
            stored = memory.spatial[found.slot[image, target]].detach()
            tau = cosine_similarity(activation[image].flatten(1), stored.flatten(1), dim=1)
            torch.testing.assert_close(weights[image, target], summed * tau.exp(), atol=1e-5, rtol=1e-3)


def test_where_nothing_looks_like_the_slot_the_map_is_grad_cam_times_the_cells():
    memory = memory_of(5, (4, 4), 12)
    with torch.no_grad():
        memory.spatial.zero_()
    with evidence_of(small(deep_head()), pictures(3), torch.arange(5)) as evidence:
        found = MCam(memory).weights(evidence).saliency(evidence.activation)
        for target in range(5):
            gradient = memory_gradient(memory, evidence.activation, target)
            grad_cam = (gradient.mean((2, 3), keepdim=True) * evidence.activation).sum(1)
            torch.testing.assert_close(found[:, target], 16 * grad_cam, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("classes", [torch.tensor([3, 0]), torch.tensor([[1], [4], [2]])])
def test_each_column_is_its_class_alone(classes):
    memory, images = memory_of(5, (4, 4), 12), pictures(3)
    with evidence_of(small(), images, torch.arange(5)) as evidence:
        whole = MCam(memory).weights(evidence).values
    with evidence_of(small(), images, classes) as evidence:
        some = MCam(memory).weights(evidence).values
    for image, targets in enumerate(classes.expand(3, -1).tolist()):
        torch.testing.assert_close(some[image], whole[image, targets])


def test_images_of_a_batch_do_not_see_each_other():
    memory, images = memory_of(5, (4, 4), 12), pictures(3)
    with evidence_of(small(), images, torch.arange(5)) as evidence:
        together = MCam(memory).weights(evidence).values
    with evidence_of(small(), images[1:2], torch.arange(5)) as evidence:
        torch.testing.assert_close(MCam(memory).weights(evidence).values[0], together[1], atol=1e-6, rtol=1e-4)


def test_volumes_are_remembered_too():
    model = deep_model()
    memory = memory_of(3, (4, 3, 5), 8)
    with evidence_of(model, volumes(2), torch.arange(3)) as evidence:
        saliency = MCam(memory).weights(evidence).saliency(evidence.activation)
    assert saliency.shape == (2, 3, 4, 3, 5)
    assert np.isfinite(saliency.detach().numpy()).all()
    assert not saliency.requires_grad
