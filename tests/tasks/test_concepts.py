"""Concepts against the plain way: upsample, threshold, label with scipy, look into the boxes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn.functional import interpolate
from torch.utils._python_dispatch import TorchDispatchMode

from tasks.measures.concepts import count

EIGHT = np.ones((3, 3))
SCALES = [
    ((7, 7), (224, 224)), ((28, 28), (224, 224)), ((8, 8), (64, 64)), ((10, 10), (64, 64)), ((13, 13), (100, 100)),
    ((5, 9), (31, 44)), ((12, 12), (12, 12)), ((9, 14), (6, 7)), ((1, 4), (9, 16)), ((3, 1), (2, 1)),
]  # fmt: skip


def plain(activation, thresholds, rects, size):
    """The oracle [regions,F]; what is above by no more than float64's error is at the threshold."""
    upsampled = interpolate(activation.double(), size, mode="bilinear").numpy()
    counts = np.zeros((len(rects), activation.shape[1]), np.int64)
    for image, boxes in enumerate(rects):
        for feature, threshold in enumerate(thresholds.tolist()):
            labels, _ = ndimage.label(upsampled[image, feature] > threshold + 1e-12, EIGHT)
            met = [np.unique(labels[top:bottom, left:right]) for left, top, right, bottom in boxes.tolist()]
            counts[image, feature] = len(set(np.concatenate([*met, [0]])) - {0})
    return counts


def drawn_boxes(random, size, most=3):
    found = np.zeros((random.integers(0, most + 1), 4), np.int64)
    for box in found:
        for axis, side in enumerate((size[1], size[0])):
            box[axis::2] = np.sort(random.choice(side + 1, 2, replace=False))
    return torch.from_numpy(found)


def scene(seed, cells, size, images=3, features=6):
    """Noise, ReLU of noise, or noise of a few values that often tie, with thresholds; and boxes."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((images, features, *cells))
    values = [values, np.maximum(values, 0), np.round(values)][seed % 3].astype(np.float32)
    thresholds = torch.from_numpy(
        random.choice([[0.0, 0.51, 1.1], [0.0, 0.0, 0.7], [0.0, 1.0, 0.3]][seed % 3], features)
    )
    return torch.from_numpy(values), thresholds, [drawn_boxes(random, size) for _ in range(images)]


def whole(size):
    return [torch.tensor([[0, 0, size[1], size[0]]])]


def of_cells(*rows):
    """One map of letters: # is 1, . is 0."""
    return torch.tensor([[[[float(cell == "#") for cell in row] for row in rows]]])


@pytest.mark.parametrize(("cells", "size"), SCALES)
def test_counts_are_those_of_upsampling_and_labelling(cells, size, device):
    total = 0
    for seed in range(9):
        activation, thresholds, rects = scene(seed, cells, size)
        expected = plain(activation, thresholds, rects, size)
        found = count(activation.to(device), thresholds.to(device), rects, size)
        assert np.array_equal(found.cpu(), expected), f"seed {seed}"
        total += expected.sum()
    assert total > 0


@settings(deadline=None)
@given(st.data())
def test_counts_are_those_of_upsampling_and_labelling_for_drawn_maps_and_boxes(data):
    cells, size = (data.draw(st.tuples(st.integers(1, most), st.integers(1, most))) for most in (5, 24))
    numbers = st.lists(st.integers(-4, 4), min_size=cells[0] * cells[1], max_size=cells[0] * cells[1])
    activation = torch.tensor(data.draw(numbers), dtype=torch.float32).view(1, 1, *cells) / 4
    thresholds = torch.tensor([data.draw(st.sampled_from([-0.03, 0.0, 0.13, 0.61]))]).double()
    left, top = data.draw(st.integers(0, size[1] - 1)), data.draw(st.integers(0, size[0] - 1))
    right, bottom = data.draw(st.integers(left + 1, size[1])), data.draw(st.integers(top + 1, size[0]))
    rects = [torch.tensor([[left, top, right, bottom]])]
    assert np.array_equal(count(activation, thresholds, rects, size), plain(activation, thresholds, rects, size))


def test_saddles_are_settled_by_their_pixels():
    """Thresholds near the height of a saddle: whether two pieces touch hangs on single pixels."""
    joined = apart = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        size = tuple(int(side) for side in random.integers(4, 44, 2))
        corners = random.integers(0, 64, (1, 40, 2, 2)) / 64
        corners[:, :, 0, 0] += 1
        corners[:, :, 1, 1] += 1
        (a, b), (c, d) = np.moveaxis(corners[0], 0, -1)
        thresholds = torch.from_numpy((a * d - b * c) / (a + d - b - c) + random.normal(0, 0.01, 40))
        activation = torch.from_numpy(corners.astype(np.float32))
        activation = activation.flip(3) if seed % 2 else activation
        expected = plain(activation, thresholds, whole(size), size)
        assert np.array_equal(count(activation, thresholds, whole(size), size), expected), f"seed {seed}"
        joined, apart = joined + (expected == 1).sum(), apart + (expected == 2).sum()
    assert min(joined, apart) > 100


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (("#...#", "#...#", "#####"), 1),
        (("#####", "#...#", "#...#", "#####"), 1),
        (("#.#.#", ".....", "#.#.#"), 6),
        ((".....", "....."), 0),
    ],
    ids=["U-shape", "ring", "dots", "silent"],
)
def test_shapes_count_once_and_a_silent_channel_not_at_all(rows, expected):
    activation = of_cells(*rows)
    assert count(activation, torch.tensor([0.75]), whole((64, 64)), (64, 64)).tolist() == [[expected]]


def test_pixels_that_meet_in_a_corner_are_one_concept():
    assert count(of_cells("#.", ".#"), torch.tensor([0.5]), whole((2, 2)), (2, 2)).tolist() == [[1]]
    assert count(of_cells("#..", "...", "..#"), torch.tensor([0.5]), whole((3, 3)), (3, 3)).tolist() == [[2]]


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
def test_a_plateau_at_its_threshold_is_not_above_it(value):
    activation = torch.full((1, 1, 13, 13), value)
    at = activation.flatten()[:1].double()
    assert count(activation, at, whole((100, 100)), (100, 100)).tolist() == [[0]]
    assert count(activation, at.nextafter(at - 1), whole((100, 100)), (100, 100)).tolist() == [[1]]


def test_a_concept_that_only_borders_on_the_box_does_not_count():
    activation = of_cells("#...", "....", "....", "....")
    (above,) = np.nonzero(interpolate(activation, (32, 32), mode="bilinear")[0, 0, 0].numpy() > 0.5)
    edge = int(above.max()) + 1
    for left, expected in ((edge, 0), (edge - 1, 1)):
        rects = [torch.tensor([[left, 0, 32, 32]])]
        assert count(activation, torch.tensor([0.5]), rects, (32, 32)).tolist() == [[expected]]


def test_a_concept_in_two_boxes_counts_once_and_one_that_joins_outside_the_box_does_too():
    activation = of_cells("#.#", "#.#", "###")
    boxes = torch.tensor([[0, 0, 8, 8], [40, 0, 48, 8]])
    for rects in (boxes, boxes.flip(0), torch.tensor([[0, 0, 48, 8]])):
        assert count(activation, torch.tensor([0.5]), [rects], (48, 48)).tolist() == [[1]]


def test_unique_concepts_are_no_more_than_disjoint_ones_and_than_features():
    activation, thresholds, rects = scene(1, (9, 9), (64, 64), images=8, features=10)
    found = count(activation, thresholds, rects, (64, 64))
    disjoint, unique = found.sum(1), (found > 0).sum(1)
    assert (unique <= disjoint).all()
    assert unique.max() <= 10
    assert (unique < disjoint).any()


def test_the_batch_and_the_chunk_change_nothing(monkeypatch):
    activation, thresholds, rects = scene(4, (9, 9), (64, 64), images=7)
    together = count(activation, thresholds, rects, (64, 64))
    alone = [count(activation[[at]], thresholds, [rects[at]], (64, 64)) for at in range(7)]
    assert torch.equal(torch.cat(alone), together)
    for knots in (1, 2**15, 2**16):
        monkeypatch.setattr("tasks.measures.concepts._CHUNK_KNOTS", knots)
        assert torch.equal(count(activation, thresholds, rects, (64, 64)), together), knots


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        parts = made if isinstance(made, tuple | list) else [made]
        self.elements = max([self.elements, *(part.numel() for part in parts if isinstance(part, torch.Tensor))])
        return made


def many_boxes(boxes, images=4):
    corners = np.random.default_rng(0).integers(0, 60, (images, boxes, 2))
    return [torch.from_numpy(np.concatenate([corner, corner + 4], 1)) for corner in corners]


def test_memory_does_not_grow_with_boxes_times_knots_in_both_directions():
    activation, thresholds, _ = scene(1, (9, 9), (64, 64), images=4, features=4)
    with Largest() as largest:
        found = count(activation, thresholds, many_boxes(200), (64, 64))
    assert np.array_equal(found, plain(activation, thresholds, many_boxes(200), (64, 64)))
    assert largest.elements <= 4 * (4 + 1) * 65 * 65  # knots of each image's features and of its region


def test_regions_count_as_features_do_in_what_is_held_at_once(monkeypatch):
    activation, thresholds, _ = scene(1, (9, 9), (64, 64), images=4, features=2)
    boxes, images = many_boxes(50), [image for image in range(4) for _ in range(30)]
    rects = [boxes[image] for image in images]
    together = count(activation, thresholds, rects, (64, 64), images=images)
    monkeypatch.setattr("tasks.measures.concepts._CHUNK_KNOTS", 40 * 64 * 64)  # 32 for each image
    with Largest() as largest:
        assert torch.equal(count(activation, thresholds, rects, (64, 64), images=images), together)
    assert largest.elements <= 32 * 65 * 65


def test_several_regions_of_an_image_are_counted_as_if_each_had_an_image_of_its_own():
    activation, thresholds, _ = scene(3, (9, 9), (64, 64))
    random = np.random.default_rng(0)
    images = [2, 0, 2, 2, 0]
    rects = [drawn_boxes(random, (64, 64)) for _ in images[1:]] + [torch.zeros(0, 4, dtype=torch.int64)]
    found = count(activation, thresholds, rects, (64, 64), images=images)
    assert torch.equal(found, count(activation[images], thresholds, rects, (64, 64)))


def test_features_without_a_threshold_and_images_without_boxes_have_no_concepts():
    activation = torch.ones(2, 2, 4, 4)
    rects = [torch.tensor([[0, 0, 8, 8]]), torch.zeros(0, 4, dtype=torch.int64)]
    found = count(activation, torch.tensor([0.5, float("nan")]), rects, (8, 8))
    assert found.tolist() == [[1, 0], [0, 0]]
    assert count(activation[:0], torch.tensor([0.5, 0.5]), [], (8, 8)).shape == (0, 2)


@pytest.mark.parametrize("box", [[0, 0, 9, 8], [-1, 0, 4, 4], [2, 2, 2, 5], [0, 5, 4, 4]])
def test_a_box_that_is_empty_or_not_inside_the_image_is_told(box):
    with pytest.raises(ValueError, match="is not inside an image of 8 x 8 pixels"):
        count(torch.ones(1, 1, 4, 4), torch.tensor([0.5]), [torch.tensor([box])], (8, 8))
