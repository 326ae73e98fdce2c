import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ModelError
from tasks.cams.scaling import CommonScale, individual, resized

CLASSES = ("Effusion", "Mass")
LIMITS = np.array([[-0.5, 2.0], [0.0, 1e-3]])


@pytest.fixture(params=["tanh", "linear"])
def scale(request):
    return CommonScale.between(LIMITS, CLASSES, layer="layer4", kind=request.param)


def scaled(scale, values):
    """values [class, n] -> scaled [class, n]."""
    maps = torch.from_numpy(values)[None, :, None, :]
    return scale.apply(maps, torch.arange(len(values)))[0, :, 0].numpy()


def test_the_limits_come_to_lie_at_a_tenth_and_nine_tenths(scale):
    np.testing.assert_allclose(scaled(scale, LIMITS), [[0.1, 0.9]] * 2, rtol=1e-12)


def test_the_scale_strictly_rises(scale):
    low, high = LIMITS.T[:, :, None]
    values = low + (high - low) * np.linspace(-1, 2, 200)
    assert (np.diff(scaled(scale, values)) > 0).all()


@given(st.floats(-2.0, 3.0))
def test_the_inverse_gives_the_level_back(position):
    for kind in ("tanh", "linear"):
        scale = CommonScale.between(LIMITS, CLASSES, layer="layer4", kind=kind)
        for index, (low, high) in enumerate(LIMITS):
            level = low + position * (high - low)
            values = np.tile(level, (2, 1))
            found = scale.invert(scaled(scale, values)[index], index)
            np.testing.assert_allclose(found, level, rtol=1e-6, atol=1e-6 * (high - low))


def test_each_image_may_have_its_own_class(scale):
    maps = torch.ones(2, 1, 2, 2)
    both = scale.apply(maps.expand(2, 2, 2, 2), torch.arange(2))
    own = scale.apply(maps, torch.tensor([[1], [0]]))
    assert torch.equal(own[0, 0], both[0, 1])
    assert torch.equal(own[1, 0], both[1, 0])


def test_a_limit_of_zero_is_an_ordinary_number():
    CommonScale.between(np.array([[0.0, 1.0], [-1.0, 0.0]]), CLASSES, layer="layer4")


@pytest.mark.parametrize("limits", [(0.25, 0.25), (0.0, 0.0), (np.nan, np.nan), (1.0, 0.0)])
def test_limits_without_a_span_are_an_error_that_names_the_class_and_the_layer(limits):
    with pytest.raises(ModelError, match=r"limits of class 'Mass' span .*'layer4'.*model\.layer"):
        CommonScale.between(np.array([[0.0, 1.0], limits]), CLASSES, layer="layer4")


def test_a_scale_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="expected one of tanh, linear"):
        CommonScale.between(LIMITS, CLASSES, layer="layer4", kind="sqrt")


def test_an_individual_scale_keeps_the_positive_part_from_zero_to_one():
    maps = torch.tensor([[[-3.0, 0.0], [1.0, 4.0]], [[2.0, 4.0], [3.0, 6.0]]])
    expected = torch.tensor([[[0.0, 0.0], [0.25, 1.0]], [[0.0, 0.5], [0.25, 1.0]]])
    assert torch.equal(individual(maps, axes=2), expected)


@pytest.mark.parametrize("level", [-2.0, 0.0, 5.0])
def test_a_flat_map_is_nothing_on_its_own_scale(level):
    assert torch.equal(individual(torch.full((1, 3, 3), level), axes=2), torch.zeros(1, 3, 3))


def test_resizing_keeps_cell_centres_in_place():
    maps = torch.tensor([[[[0.0, 1.0]]]])
    np.testing.assert_allclose(resized(maps, (1, 4))[0, 0, 0].numpy(), [0.0, 0.25, 0.75, 1.0])
    assert resized(maps, (1, 2)) is maps
