"""Localisation equals what loops, scipy and scikit-learn make of the same maps and boxes, one case at a time."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import jaccard_score
from torch import Tensor

from tasks.cams.scaling import individual
from tasks.measures.located import alignment, iou, pointing, rectangles, region, small
from tasks.measures.names import IOU_THRESHOLDS
from tasks.preprocess import Preprocess

SIZE = (18, 25)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


def _cases(seed: int, count: int = 12) -> tuple[Tensor, list[Tensor]]:
    """Maps [n,H,W], coarse so that many cells share the top, and one to three overlapping rectangles each."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 4, (count, *SIZE)).astype(np.float32)
    maps = individual(torch.from_numpy(coarse), axes=2)
    rects = []
    for _ in range(count):
        first = random.integers(0, (SIZE[1] - 1, SIZE[0] - 1), (random.integers(1, 4), 2))
        last = np.minimum(first + random.integers(1, 12, first.shape), (SIZE[1], SIZE[0]))
        rects.append(torch.from_numpy(np.concatenate([first, last], 1)))
    return maps, rects


def _painted(rects: Tensor) -> NDArray[np.bool_]:
    canvas = np.zeros(SIZE, bool)
    for x0, y0, x1, y1 in rects.tolist():
        for y in range(y0, y1):
            canvas[y, x0:x1] = True
    return canvas


def _regions(rects: Sequence[Tensor]) -> Tensor:
    return torch.stack([region(one, SIZE) for one in rects])


@pytest.mark.parametrize("seed", range(4))
def test_the_region_is_the_union_of_the_rectangles(seed: int, device: torch.device) -> None:
    for rects in _cases(seed)[1]:
        np.testing.assert_array_equal(region(rects.to(device), SIZE).cpu(), _painted(rects))
    assert not region(torch.empty(0, 4, dtype=torch.int64, device=device), SIZE).any()


@pytest.mark.parametrize("seed", range(4))
def test_alignment_equals_an_energy_counted_cell_by_cell(seed: int, device: torch.device) -> None:
    maps, rects = _cases(seed)
    found = alignment(maps.to(device), _regions(rects).to(device))
    for case, (one, drawn) in enumerate(zip(maps.numpy(), rects, strict=True)):
        inside = everywhere = area = 0.0
        for (y, x), boxed in np.ndenumerate(_painted(drawn)):
            everywhere += float(one[y, x])
            inside += float(one[y, x]) * boxed
            area += boxed
        assert found[0][case].item() == pytest.approx(inside / area, rel=1e-12)
        assert found[1][case].item() == pytest.approx(inside / everywhere, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_map_that_is_1_everywhere_covers_the_boxes_and_is_as_precise_as_they_are_large(seed: int) -> None:
    rects = _cases(seed)[1]
    regions = _regions(rects)
    covered, precise = alignment(torch.ones(len(rects), *SIZE), regions)
    assert covered.tolist() == [1.0] * len(rects)
    assert precise.tolist() == [_painted(one).mean() for one in rects]


def test_a_map_that_is_0_everywhere_scores_0_and_is_counted() -> None:
    rects = [torch.tensor([[3, 3, 20, 12]])] * 2  # in whose middle the centroid of all cells lies
    maps, regions = torch.zeros(2, *SIZE), _regions(rects)
    for found in (*alignment(maps, regions), pointing(maps, rects, 0.95), *iou(maps, regions, (0.1, 0.5)).T):
        assert found.dtype == torch.float64
        assert found.tolist() == [0.0, 0.0]


def test_a_case_without_a_box_in_the_input_has_no_number() -> None:
    maps, drawn = _cases(0, 3)
    rects = [drawn[0], torch.zeros(1, 4, dtype=torch.int64), torch.empty(0, 4, dtype=torch.int64)]
    regions = _regions(rects)
    for found in (*alignment(maps, regions), pointing(maps, rects, 0.5), *iou(maps, regions, (0.1, 0.5)).T):
        assert found.isnan().tolist() == [False, True, True]
        assert found[0] == found[0]


@pytest.mark.parametrize("seed", range(4))
def test_iou_equals_scikit_learns(seed: int, device: torch.device) -> None:
    maps, rects = _cases(seed)
    found = iou(maps.to(device), _regions(rects).to(device), IOU_THRESHOLDS)
    assert found.shape == (len(maps), len(IOU_THRESHOLDS))
    for case, (one, drawn) in enumerate(zip(maps.numpy(), rects, strict=True)):
        for column, threshold in enumerate(IOU_THRESHOLDS):
            expected = jaccard_score(_painted(drawn).ravel(), (one > threshold).ravel())
            assert found[case, column].item() == pytest.approx(expected, rel=1e-12)


def test_cells_at_the_threshold_are_not_above_it() -> None:
    assert iou(_map((5, 5), value=0.5), _regions(_pixel(5, 5)), (0.4, 0.5)).tolist() == [[1.0, 0.0]]


def _pointed(one: NDArray[np.float32], rects: Tensor, level: float) -> float:
    """By scipy: the centroid of the largest component, in a box or not; pixel i reaches from i to i + 1."""
    components, count = ndimage.label(one > level, np.ones((3, 3)))
    if not count:
        return 0.0
    sizes = ndimage.sum_labels(np.ones(one.shape), components, np.arange(1, count + 1))
    y, x = (place + 0.5 for place in ndimage.center_of_mass(np.ones(one.shape), components, int(sizes.argmax()) + 1))
    return float(any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in rects.tolist()))


@pytest.mark.parametrize("level", [0.3, 0.95])
@pytest.mark.parametrize("seed", range(6))
def test_pointing_equals_scipys_components_and_centroids(seed: int, level: float, device: torch.device) -> None:
    maps, rects = _cases(seed, 40)
    found = pointing(maps.to(device), [one.to(device) for one in rects], level).cpu()
    expected = [_pointed(one, drawn, level) for one, drawn in zip(maps.numpy(), rects, strict=True)]
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def _map(*places: tuple[int, int], value: float = 1.0) -> Tensor:
    one = torch.zeros(1, *SIZE)
    for y, x in places:
        one[0, y, x] = value
    return one


def _pixel(y: int, x: int) -> list[Tensor]:
    return [torch.tensor([[x, y, x + 1, y + 1]])]


def test_a_single_cell_points_to_itself_and_to_none_of_its_neighbours() -> None:
    for y in range(3, 8):
        for x in range(3, 8):
            assert pointing(_map((5, 5)), _pixel(y, x), 0.95).item() == ((y, x) == (5, 5))


def test_cells_that_touch_at_a_corner_are_one_blob_and_the_largest_is_meant() -> None:
    diagonal = [(5, 5), (6, 6), (7, 7)]
    pair = [(1, 1), (1, 2)]
    assert pointing(_map(*diagonal, *pair), _pixel(6, 6), 0.95).item() == 1
    assert pointing(_map(*diagonal, *pair), _pixel(1, 2), 0.95).item() == 0


def test_of_equal_blobs_the_first_in_reading_order_is_meant() -> None:
    both = _map((2, 20), (9, 3))
    assert pointing(both, _pixel(2, 20), 0.95).item() == 1
    assert pointing(both, _pixel(9, 3), 0.95).item() == 0


def test_a_cell_at_the_level_is_not_above_it() -> None:
    maps = torch.maximum(_map((5, 5)), _map((5, 6), value=0.5))
    assert pointing(maps, _pixel(5, 5), 0.5).item() == 1


def test_the_centroid_may_miss_the_blob() -> None:
    ring = [(y, x) for y in range(4, 9) for x in range(4, 9) if {y, x} & {4, 8}]
    assert pointing(_map(*ring), _pixel(6, 6), 0.95).item() == 1


def test_no_cases_have_no_numbers() -> None:
    maps, regions = torch.empty(0, *SIZE), torch.empty(0, *SIZE, dtype=torch.bool)
    assert pointing(maps, [], 0.95).shape == (0,)
    assert iou(maps, regions, IOU_THRESHOLDS).shape == (0, len(IOU_THRESHOLDS))
    assert [one.shape for one in alignment(maps, regions)] == [(0,), (0,)]


def test_boxes_are_floored_half_open_and_at_least_a_pixel() -> None:
    nan = float("nan")
    boxes = [[1.9, 2.0, 4.9, 5.0], [3.2, 3.2, 3.4, 7.9], [23.5, 0.0, 25.0, 0.1], [nan] * 4]
    assert rectangles(torch.tensor(boxes, dtype=torch.float64)).tolist() == [
        [1, 2, 4, 5],
        [3, 3, 4, 7],
        [23, 0, 25, 1],
        [0, 0, 0, 0],
    ]
    assert rectangles(torch.empty(0, 4)).shape == (0, 4)


@settings(deadline=None, max_examples=100)
@given(sides=st.tuples(*[st.floats(-30, 60)] * 4), height=st.integers(5, 60), width=st.integers(5, 60))
def test_every_box_in_the_input_is_a_pixel_or_more_of_it(sides: tuple[float, ...], height: int, width: int) -> None:
    x, y = (sorted((first, first + abs(last) + 0.01)) for first, last in (sides[:2], sides[2:]))
    preprocess = Preprocess(32, 24, 1, (0.0,), (1.0,))
    boxes = preprocess.boxes((height, width), torch.tensor([[x[0], y[0], x[1], y[1]]], dtype=torch.float64))
    inside = not boxes.isnan().any()
    assert bool(region(rectangles(boxes), preprocess.size).any()) == inside


@pytest.mark.parametrize(("rects", "expected"), [([[0, 0, 5, 5]], True), ([[0, 0, 5, 5], [5, 5, 10, 10]], False)])
def test_small_is_the_union_under_the_share_of_the_input(rects: list[list[int]], expected: bool) -> None:
    assert small(torch.tensor(rects), (10, 10), 0.5) == expected
    assert small(torch.tensor(rects * 3), (10, 10), 0.5) == expected  # the same boxes again are no more area
    assert not small(torch.empty(0, 4, dtype=torch.int64), (10, 10), 0.5)
