"""Parts of an archive have each class alike, have no patient in common, and follow from the seed alone."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.splits import stratified

SHARES = (0.7, 0.1, 0.2)


def _archive(seed: int, groups: int, classes: int) -> tuple[list[str], NDArray[np.bool_]]:
    """Synthetic: 1 to 6 images a group; the first class is ten times as rare as the last, and none is exclusive."""
    random = np.random.default_rng(seed)
    members = random.permutation(np.repeat(np.arange(groups), random.integers(1, 7, groups)))
    tendency = random.random((groups, classes)) < np.geomspace(0.04, 0.4, classes)
    positive = tendency[members] & (random.random((len(members), classes)) < 0.8)
    return [f"patient {member}" for member in members], positive


archives = st.builds(_archive, st.integers(0, 10_000), st.integers(3, 60), st.integers(0, 5))


@given(archives, st.lists(st.floats(0.05, 1), min_size=1, max_size=4), st.integers(0, 99))
def test_every_image_is_in_one_part_and_no_group_in_two(
    archive: tuple[list[str], NDArray[np.bool_]], shares: list[float], seed: int
) -> None:
    groups, positive = archive
    parts = stratified(groups, positive, shares, seed)
    assert parts.shape == (len(groups),)
    assert parts.dtype == np.int64
    assert set(parts.tolist()) <= set(range(len(shares)))
    assert len(set(zip(groups, parts.tolist(), strict=True))) == len(set(groups))


@given(archives, st.integers(0, 99))
def test_no_part_is_empty_while_there_are_groups_for_all(
    archive: tuple[list[str], NDArray[np.bool_]], seed: int
) -> None:
    groups, positive = archive
    assert set(stratified(groups, positive[:, :0], SHARES, seed).tolist()) == {0, 1, 2}


def test_one_part_has_everything() -> None:
    groups, positive = _archive(1, 20, 3)
    assert not stratified(groups, positive, (1.0,), 0).any()


@given(st.integers(0, 10_000), st.integers(0, 99))
def test_a_class_with_three_groups_of_its_own_is_in_every_part(drawn: int, seed: int) -> None:
    random = np.random.default_rng(drawn)
    labels = [column for column, groups in enumerate(random.integers(3, 12, 4)) for _ in range(groups)]
    own = np.eye(4, dtype=bool)[labels]
    mixed = random.random((40, 4)) < np.geomspace(0.02, 0.5, 4)  # groups that have several
    positive = np.concatenate([own, mixed])
    parts = stratified([str(row) for row in range(len(positive))], positive, SHARES, seed)
    assert all(positive[parts == part].any(0).all() for part in range(3))


@pytest.mark.parametrize("seed", range(5))
def test_parts_have_the_asked_share_of_every_label_of_a_skewed_archive(seed: int) -> None:
    groups, positive = _archive(seed, 2000, 8)
    parts = stratified(groups, positive, SHARES, seed)
    rare, common = positive.sum(0)[[0, -1]]
    assert common > 8 * rare
    for part, share in enumerate(SHARES):
        chosen = parts == part
        assert abs(chosen.mean() - share) < 0.002
        off = positive[chosen].sum(0) - share * positive.sum(0)
        assert np.abs(off).max() <= 6  # images: one group


def test_groups_of_many_images_are_not_kept_for_one_part() -> None:
    groups, positive = _archive(3, 3000, 4)
    parts = stratified(groups, positive, SHARES, 0)
    sizes = [np.mean(np.unique(np.array(groups)[parts == part], return_counts=True)[1]) for part in range(3)]
    assert np.ptp(sizes) < 0.25  # of 3.5 images


def test_the_seed_decides_and_what_groups_are_called_does_not() -> None:
    groups, positive = _archive(7, 100, 3)
    first = stratified(groups, positive, SHARES, 5)
    assert np.array_equal(first, stratified(groups, positive, SHARES, 5))
    assert np.array_equal(first, stratified([name[::-1] for name in groups], positive, SHARES, 5))
    assert not np.array_equal(first, stratified(groups, positive, SHARES, 6))


def test_two_hundred_thousand_images_take_seconds() -> None:
    random = np.random.default_rng(0)
    groups = list(map(str, random.integers(0, 50_000, 200_000)))
    positive = random.random((200_000, 14)) < np.geomspace(0.01, 0.1, 14)
    started = time.perf_counter()
    stratified(groups, positive, SHARES, 0)
    assert time.perf_counter() - started < 10  # half a second on a core of its own
