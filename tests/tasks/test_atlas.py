"""Regions of an atlas on the classifier's input. The atlases are synthetic."""

import numpy as np
import pytest
import torch

from storage.errors import ModelError
from tasks.atlas import Atlas, misplaced
from tasks.cams.names import MethodName
from tasks.explain import ExplainSettings
from tasks.glas import Glas
from tasks.methods import METHODS, GlasMap
from tasks.preprocess import Preprocess
from tasks.search_points import Field
from tests.tasks.test_volumes import deep_model, explained, volumes

AS_IT_IS = Preprocess(None, (8, 6, 10), 1, (0.0,), (1.0,))


def octants(shape=(8, 6, 10)):
    """Labels 1 to 8: three halves."""
    halves = [2 * np.arange(side) // side for side in shape]
    labels = 1 + 4 * halves[0][:, None, None] + 2 * halves[1][:, None] + halves[2]
    return Atlas(labels.astype(np.int32), {label: f"octant {label}" for label in range(1, 9)}, (1.0, 1.0, 2.0))


def test_centroids_are_the_middles_of_the_regions_as_parts_of_the_sides():
    expected = [(z, y, x) for z in (0.25, 0.75) for y in (0.25, 0.75) for x in (0.25, 0.75)]
    np.testing.assert_allclose(octants().covered(AS_IT_IS).centroids(), expected, atol=1e-6)


def test_a_region_is_where_the_voxels_are_that_carry_its_label():
    labels = np.zeros((8, 6, 10), np.int32)
    labels[1, 2, 3] = labels[1, 2, 4] = 7
    labels[6, 0, 9] = 9
    regions = Atlas(labels, {7: "two voxels", 9: "a corner"}, (1.0,) * 3).covered(AS_IT_IS)
    assert regions.names == ("two voxels", "a corner")
    expected = [(1.5 / 8, 2.5 / 6, 4 / 10), (6.5 / 8, 0.5 / 6, 9.5 / 10)]
    np.testing.assert_allclose(regions.centroids(), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 6, 10), (4, 3, 5), (3, 2, 3)])
def test_the_weights_average_a_map_over_a_region(size):
    regions = octants().covered(AS_IT_IS)
    weights = regions.weights(size)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert weights.shape == (8, np.prod(size))
    # A map that is 1 in the lower half: its mean is 1 over the four lower octants. Thirds share the middle.
    lower = np.zeros(size)
    lower[: size[0] // 2] = 1
    means = weights @ lower.ravel()
    expected = [1] * 4 + [0] * 4 if size[0] % 2 == 0 else [2 / 3] * 4 + [0] * 4
    np.testing.assert_allclose(means, expected, atol=1e-6)


def test_an_atlas_goes_the_way_of_the_images():
    halved = Preprocess((4, 3, 5), None, 1, (0.0,), (1.0,))
    np.testing.assert_allclose(octants().covered(halved).centroids()[7], (0.75, 0.75, 0.75), atol=0.06)
    middle = Preprocess(None, (4, 6, 10), 1, (0.0,), (1.0,))  # the middle four slices: each half keeps two
    np.testing.assert_allclose(octants().covered(middle).centroids()[0], (0.25, 0.25, 0.25), atol=1e-6)


def test_a_region_outside_of_what_the_model_sees_is_an_error_that_names_it():
    labels = np.zeros((8, 6, 10), np.int32)
    labels[0, 0, 0], labels[4, 3, 5] = 1, 2
    with pytest.raises(ModelError, match=r"1 of 2 regions lie outside .* 'edge'"):
        Atlas(labels, {1: "edge", 2: "middle"}, (1.0,) * 3).covered(Preprocess(None, (4, 4, 4), 1, (0.0,), (1.0,)))


def test_a_volume_of_other_sides_or_spacing_does_not_lie_in_the_atlas():
    space = Field((8, 6, 10), (1.0, 1.0, 2.0))
    assert misplaced((8, 6, 10), (1.0, 1.001, 2.0), space) is None
    assert misplaced((8, 6, 9), (1.0, 1.0, 2.0), space) == (
        "its 8 x 6 x 9 voxels are not the atlas' 8 x 6 x 10: register it to the atlas first"
    )
    assert "spacing" in str(misplaced((8, 6, 10), (1.0, 1.0, 1.0), space))
    assert "spacing" in str(misplaced((8, 6, 10), None, space))


def test_volumes_outside_of_the_atlas_fail_and_the_others_are_searched_at_its_centroids():
    model, images = deep_model(), volumes(3)
    images[1] = volumes(1, (8, 6, 9))[0]
    regions = octants().covered(model.preprocess)
    glas = Glas(axes=3, places=regions.centroids())
    inputs = []
    model.module.register_forward_pre_hook(lambda _, batch: inputs.append(len(batch[0])))
    settings = ExplainSettings(
        (MethodName("glas"),),
        "all",
        3,
        rules=METHODS | {"glas": GlasMap("fusion", glas)},
        space=regions.space,
    )
    spacing = (1.0, 1.0, 2.0)
    found = explained(model, images, settings, spacings=[spacing] * 3)
    assert list(found.failures) == [1]
    assert "register it to the atlas first" in found.failures[1]
    assert sum(inputs) == 2 + 2 * (2 * 8 + 1)
    assert np.isfinite(found.maps["glas"]).all((1, 2, 3, 4)).tolist() == [True, False, True]


def test_the_covers_of_all_regions_add_up_to_the_atlas():
    covers = octants().covered(AS_IT_IS).covers
    torch.testing.assert_close(covers.sum(0), torch.ones(8, 6, 10))
