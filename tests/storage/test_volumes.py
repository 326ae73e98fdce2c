"""Slices make a volume by where they lie: in order, evenly, straight, or not at all."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ImageError
from storage.volumes import Axes, refuse_large, refuse_mixed, stack_slices
from tests.storage.volume_files import AXIAL, Array

OBLIQUE = np.array([0.8, 0.6, 0.0, -0.6 * 0.6, 0.8 * 0.6, 0.8])


def _line(heights: object, orientation: object = AXIAL, shift: object = 0.0) -> Array:
    """Positions at these heights along the normal, shifted along the rows."""
    row, column = np.asarray(orientation, float).reshape(2, 3)
    normal = np.cross(row, column)
    return (
        np.array([1.0, 2.0, 3.0])
        + np.outer(np.asarray(heights, float), normal)
        + np.outer(np.broadcast_to(np.asarray(shift, float), np.shape(heights)), row)
    )


@given(
    order=st.permutations(range(9)),
    orientation=st.sampled_from([AXIAL, OBLIQUE, (0, 1, 0, 0, 0, -1)]),
    noise=st.lists(st.floats(-0.004, 0.004), min_size=9, max_size=9),
)
def test_slices_come_in_order_of_position_whatever_order_they_are_in(
    order: list[int], orientation: Array, noise: list[float]
) -> None:
    heights = np.arange(9.0) + noise
    stack = stack_slices(_line(heights, orientation)[order], orientation, uneven="reject")
    assert [order[index] for index in stack.order] == list(range(9))
    assert stack.even
    assert (stack.depth, pytest.approx(stack.gap, abs=0.01)) == (9, 1.0)


FAULTS = {
    "one": ([0.0], 0, "a series of one slice, which is no volume"),
    "missing": (
        [*range(40), *range(41, 108)],
        0,
        "1 slice missing of 108: a gap of 2.0 x the spacing between slices 40 and 41",
    ),
    "several missing": ([0, 1, 4, 5, 6, 8], 0, "3 slices missing of 9: a gap of 3.0 x the spacing between slices 2"),
    "uneven": ([0, 2, 4, 6.5, 8.5], 0, "uneven spacing: gaps of 2.00 to 2.50 mm, 2.00 mm in the median"),
    "doubled": ([0, 1, 2, 2, 3], 0, "1 slice doubled of 5: slices 3 and 4 lie at one position"),
    "two acquisitions": ([0, 0, 1, 1, 2, 2], 0, "3 slices doubled of 6: slices 1 and 2 lie at one position"),
    "nearly doubled": ([0, 1e-4, 1, 1 + 1e-4, 2, 2 + 1e-4], 0, "3 slices doubled of 6"),
    "one position": ([0, 0, 0], 0, "its 3 slices all lie at one position along their normal"),
    "tilted": (range(5), np.arange(5) * np.tan(np.radians(12)), "stacked at 12.0 degrees to their normal (gantry"),
    "shifted": (range(5), [0, 0, 0, 1.5, 1.5], "slices 3 and 4 are shifted sideways by 1.50 mm"),
}  # fmt: skip


@pytest.mark.parametrize("orientation", [AXIAL, tuple(OBLIQUE)], ids=["axial", "oblique"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_volume_is_refused_with_the_numbers(fault: str, orientation: tuple[float, ...]) -> None:
    heights, shift, expected = FAULTS[fault]
    positions = _line(list(heights), orientation, shift)
    with pytest.raises(ImageError, match=re.escape(expected)):
        stack_slices(positions[::-1], np.array(orientation), uneven="reject")


@pytest.mark.parametrize("fault", ["one", "doubled", "two acquisitions", "one position", "tilted", "shifted"])
def test_resampling_mends_gaps_and_nothing_else(fault: str) -> None:
    heights, shift, expected = FAULTS[fault]
    with pytest.raises(ImageError, match=re.escape(expected)):
        stack_slices(_line(list(heights), AXIAL, shift), np.array(AXIAL), uneven="resample")


@pytest.mark.parametrize("heights", [[0, 1, 2, 4, 5], [0, 1, 2, 3.5, 4.4, 5.4], [0, 0.9, 2.1, 3, 4]])
def test_resampled_is_linear_between_neighbours(heights: list[float]) -> None:
    stack = stack_slices(_line(heights), np.array(AXIAL), uneven="resample")
    values = np.random.default_rng(0).normal(size=(len(heights), 2, 3))
    grid = heights[0] + np.median(np.diff(heights)) * np.arange(stack.depth)
    assert grid[-1] <= heights[-1] + 0.01
    assert heights[-1] - grid[-1] < stack.gap
    resampled = stack.resampled(values)
    for row in range(2):
        for column in range(3):
            expected = np.interp(grid, heights, values[:, row, column])
            np.testing.assert_allclose(resampled[:, row, column], expected, atol=1e-12)


def test_a_slice_that_lies_on_the_grid_is_not_touched_by_its_neighbours_gaps() -> None:
    stack = stack_slices(_line([0, 1, 2, 4, 5]), np.array(AXIAL), uneven="resample")
    values = np.arange(5.0).reshape(5, 1, 1).copy()
    values[3] = np.nan  # no image there
    assert np.isnan(stack.resampled(values)[:, 0, 0]).tolist() == [False, False, False, True, True, False]


def test_more_is_not_made_up_than_was_measured() -> None:
    with pytest.raises(
        ImageError, match=re.escape("161 of 165 slices would be interpolated, more than there are: a gap")
    ):
        stack_slices(_line([0, 162, 163, 164]), np.array(AXIAL), uneven="resample")


def test_places_that_no_patient_has_are_refused_without_reckoning_with_them() -> None:
    for far in (1e308, np.nan, np.inf):
        with pytest.raises(ImageError, match="do not all say where they lie"):
            stack_slices(np.array([[0, 0, 0], [0, 0, far]]), np.array(AXIAL), uneven="reject")
        with pytest.raises(ImageError, match="do not all say how they are turned"):
            refuse_mixed(np.full((2, 2), 4), np.array([AXIAL, (far, 0, 0, 0, 1, 0)]), np.ones((2, 2)))
        with pytest.raises(ImageError, match="do not all give their PixelSpacing"):
            refuse_mixed(np.full((2, 2), 4), np.array([AXIAL, AXIAL]), np.array([[1, 1], [1, far]]))
        with pytest.raises(ImageError, match="no usable directions"):
            Axes.of(np.diag([1, 1, far]))


def test_directions_that_are_none_are_refused() -> None:
    for orientation in ((1, 0, 0, 1, 0, 0), (2, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 0)):
        with pytest.raises(ImageError, match="not two directions at right angles"):
            stack_slices(_line([0, 1]), np.array(orientation, float), uneven="reject")


@pytest.mark.parametrize(
    ("sizes", "orientations", "spacings", "expected"),
    [
        ([(4, 4), (4, 5), (4, 4)], [AXIAL] * 3, [(1, 1)] * 3, "its slices have 2 sizes in pixels"),
        ([(4, 4)] * 3, [AXIAL, AXIAL, (0, 1, 0, 0, 0, -1)], [(1, 1)] * 3, "2 orientations (a scout among them?)"),
        ([(4, 4)] * 3, [AXIAL] * 3, [(1, 1), (1, 1.1), (1, 1.2)], "its slices have 3 pixel spacings"),
        ([(4, 4)] * 3, [AXIAL, AXIAL, (np.nan,) * 6], [(1, 1)] * 3, "do not all say how they are turned"),
        ([(4, 4)] * 3, [AXIAL] * 3, [(1, 1), (1, np.nan), (1, 1)], "do not all give their PixelSpacing"),
        ([(4, side) for side in range(20)], [AXIAL] * 20, [(1, 1)] * 20, "9 or more sizes"),
    ],
)
def test_slices_of_different_kinds_are_refused(
    sizes: object, orientations: object, spacings: object, expected: str
) -> None:
    with pytest.raises(ImageError, match=re.escape(expected)):
        refuse_mixed(np.array(sizes), np.array(orientations, float), np.array(spacings, float))


def test_slices_that_differ_by_rounding_are_of_one_kind() -> None:
    noise = np.random.default_rng(0).uniform(-4e-4, 4e-4, (50, 8))
    refuse_mixed(np.full((50, 2), 4), np.array(AXIAL) + noise[:, :6], 0.5 * np.exp(noise[:, 6:]))


def test_axes_go_to_those_of_the_patient_that_they_are_closest_to() -> None:
    stack = stack_slices(_line([0, 3, 6], OBLIQUE), OBLIQUE, uneven="reject")
    axes = Axes.of(stack.steps(OBLIQUE, np.array([0.75, 0.5])))
    # Rows run mostly to the left, columns mostly to the head, slices mostly to the front.
    assert axes.sizes((3, 40, 50)) == (40, 3, 50)
    np.testing.assert_allclose(axes.turned_spacing, (0.75, 3.0, 0.5))
    values = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(axes.turned(values), values.transpose(1, 0, 2)[:, ::-1])


def test_a_sheared_volume_is_refused() -> None:
    with pytest.raises(ImageError, match="sheared"):
        Axes.of(np.array([[1.0, 0.1, 0], [0, 1, 0], [0, 0, 1]]))
    for steps in (np.zeros((3, 3)), np.full((3, 3), np.nan)):
        with pytest.raises(ImageError, match="no usable directions"):
            Axes.of(steps)


def test_too_many_voxels_are_refused_without_reckoning_over() -> None:
    refuse_large((2, 3, 4), 24)
    for sizes in ((2, 3, 5), (1 << 40, 1 << 40, 1 << 40)):
        with pytest.raises(ImageError, match=r"more than the 24 allowed \(archive.caps.voxels\)"):
            refuse_large(sizes, 24)
