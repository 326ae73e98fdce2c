"""Features of a shard: what the classifier computes, whatever the batch; a bad image is a failure."""

import numpy as np
import pytest
import torch

from tasks.capture import capturing
from tasks.features import features_of
from tests.tasks.small_classifiers import names, pictures, pixels, small


def features(model, images, batch=4):
    return features_of(model, images, names(images), batch=batch, precision="float32")


def test_they_are_the_layers_activation_and_the_heads_logits():
    model, images = small(), pictures(6)
    with capturing(model) as capture:
        forward = capture(pixels(model, images))
    found = features(model, images, batch=6)
    assert found.rows.tolist() == list(range(6))
    torch.testing.assert_close(found.activation, forward.activation.detach())
    torch.testing.assert_close(found.logits, forward.logits.detach())
    assert not found.activation.requires_grad


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_the_batch_does_not_matter(batch):
    model, images = small(), pictures(9)
    whole, found = features(model, images, batch=9), features(model, images, batch=batch)
    torch.testing.assert_close(found.activation, whole.activation, atol=1e-5, rtol=1e-5)


def test_an_image_without_numbers_fails_alone():
    model, images = small(), pictures(5)
    whole = features(model, images)
    images[2] = np.full((16, 16, 3), np.nan, np.float32)
    found = features(model, images)
    assert found.rows.tolist() == [0, 1, 3, 4]
    assert list(found.failures) == [2]
    assert "not finite" in found.failures[2]
    torch.testing.assert_close(found.activation, whole.activation[[0, 1, 3, 4]], atol=1e-5, rtol=1e-5)


def test_where_every_image_fails_each_is_told():
    images = [np.full((16, 16, 3), np.nan, np.float32)] * 3
    found = features(small(), images)
    assert len(found.rows) == 0
    assert list(found.failures) == [0, 1, 2]


def test_of_no_image_there_are_none():
    found = features(small(), [])
    assert len(found.rows) == len(found.activation) == len(found.logits) == 0
