"""The study of co-occurrence: its canvases have the rates they should, its measures are right, and it runs."""

import csv
from itertools import combinations

import numpy as np
import pytest
import torch

from examples.co_occurrence.chain import METHODS_SHOWN, Sizes, handwriting, without_likeness
from examples.co_occurrence.measures import by_area, measured, scaled
from examples.co_occurrence.memories import fit_memory
from examples.co_occurrence.scenes import SIDE, TARGETS, Cast, Plan, compose, draw, overlap
from examples.co_occurrence.study import study
from examples.co_occurrence.tables import interval, markdown, read_csv
from tasks.fitting import Recipe
from tasks.memory import Memory

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def archive(request):
    """Cast, handwriting and training canvases of a seed."""
    cast, (pool, _) = Cast.drawn(request.param), handwriting(request.param)
    return cast, pool, compose(Plan.training(10), cast, pool, request.param)


def test_targets_are_twenty_to_five_to_one_and_come_one_a_canvas(archive):
    cast, _, scenes = archive
    assert [int((scenes.target == target).sum()) for target in range(len(TARGETS))] == [200, 50, 10]
    assert scenes.labels[:, list(cast.targets)].sum(1).max() == 1


def test_nine_in_ten_targets_have_the_context_beside_them_and_one_in_ten_other_canvases(archive):
    cast, _, scenes = archive
    shown = scenes.labels[:, cast.context].astype(bool)
    for target in range(len(TARGETS)):
        assert shown[scenes.target == target].mean() == pytest.approx(0.9)
    assert shown[scenes.target < 0].mean() == pytest.approx(0.1)
    np.testing.assert_array_equal(shown, scenes.context)


def test_a_canvas_shows_three_different_digits_target_first_and_context_next(archive):
    cast, pool, scenes = archive
    assert (scenes.labels.sum(1) == 3).all()
    np.testing.assert_array_equal(pool.values[scenes.digits], scenes.values)
    for target, digit in enumerate(cast.targets):
        both = scenes.where(target, context=True)
        assert (scenes.values[both, 0] == digit).all()
        assert (scenes.values[both, 1] == cast.context).all()


def test_no_digit_lies_over_another_or_leaves_the_canvas(archive):
    _, pool, scenes = archive
    drawn = draw(scenes, pool, seed=4)
    assert drawn.boxes.min() >= 0
    assert drawn.boxes.max() <= SIDE
    for boxes in drawn.boxes:
        assert not any(overlap(one, other) for one, other in combinations(boxes, 2))


def test_ink_is_in_the_boxes_and_nowhere_else(archive):
    _, pool, scenes = archive
    drawn = draw(scenes, pool, seed=4)
    inside = np.zeros(drawn.pixels.shape, bool)
    for canvas, boxes in enumerate(drawn.boxes):
        for x0, y0, x1, y1 in boxes:
            assert np.percentile(drawn.pixels[canvas, y0:y1, x0:x1], 90) > 0.4
            inside[canvas, y0:y1, x0:x1] = True
    assert drawn.pixels[~inside].mean() == pytest.approx(0.15, abs=0.01)


def test_one_seed_gives_the_same_canvases_and_another_seed_others():
    cast, (pool, _) = Cast.drawn(0), handwriting(0)
    first, again, other = (draw(compose(Plan.test(3), cast, pool, seed), pool, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.boxes, other.boxes)


def test_test_canvases_are_of_handwriting_that_training_has_not_seen():
    pool, unseen = handwriting(0)
    assert not {ink.tobytes() for ink in pool.ink} & {ink.tobytes() for ink in unseen.ink}
    assert set(unseen.values) == set(pool.values) == set(range(10))


TARGET, CONTEXT = np.array([[0, 0, 2, 2]]), np.array([[2, 2, 4, 4]])


def painted(**cells):
    """One map of 4 x 4 cells: target=3.0 gives the first cell of the target's box that value."""
    saliency = np.zeros((1, 4, 4))
    for part, (y, x) in {"target": (0, 0), "context": (3, 3), "beside": (0, 3)}.items():
        saliency[0, y, x] = cells.get(part, 0.0)
    return saliency


def test_shares_are_those_of_the_energy_that_was_painted():
    found = measured(painted(target=3.0, context=1.0, beside=4.0), TARGET, CONTEXT)
    assert found.means() == pytest.approx(
        {
            "of_both": 0.75,
            "energy_target": 3 / 8,
            "energy_context": 1 / 8,
            "peak_target": 0,
            "peak_context": 0,
            "empty": 0,
        }
    )


@pytest.mark.parametrize(("part", "target", "context"), [("target", 1, 0), ("context", 0, 1), ("beside", 0, 0)])
def test_the_peak_is_in_the_box_where_it_was_painted(part, target, context):
    found = measured(painted(**{"target": 1.0, "context": 1.0, "beside": 1.0, part: 2.0}), TARGET, CONTEXT)
    assert (found.peak_target, found.peak_context) == (target, context)


def test_what_speaks_against_the_class_is_not_energy():
    found = measured(painted(target=1.0, context=-5.0), TARGET, CONTEXT)
    assert (found.of_both, found.energy_target) == (1, 1)


def test_a_map_without_anything_above_its_minimum_is_empty_and_scores_nothing():
    for saliency in (np.full((1, 4, 4), -1.0), np.full((1, 4, 4), 2.0)):
        assert measured(saliency, TARGET, CONTEXT).means() == pytest.approx(
            dict.fromkeys(("of_both", "energy_target", "energy_context", "peak_target", "peak_context"), 0)
            | {"empty": 1}
        )


def test_without_a_context_nothing_is_said_of_it():
    found = measured(painted(target=1.0), TARGET, None)
    assert found.energy_target == found.peak_target == 1
    assert np.isnan([found.of_both, found.energy_context, found.peak_context]).all()


def test_the_minimum_of_a_map_above_0_is_taken_off():
    np.testing.assert_allclose(scaled(np.array([[[2.0, 3.0], [4.0, 4.0]]])), [[[0, 0.5], [1, 1]]])


def test_chance_is_the_share_of_the_area():
    found = by_area(TARGET, CONTEXT, side=4)
    assert (found.of_both, found.energy_target, found.peak_context) == (0.5, 0.25, 0.25)


def test_maps_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        measured(painted(target=np.nan), TARGET, CONTEXT)


def test_an_interval_is_student_s_and_leaves_unknown_values_out():
    mean, half, count = interval([1.0, 2.0, 3.0, float("nan")])
    assert (mean, count) == (2.0, 3)
    assert half == pytest.approx(4.303 / 3**0.5, rel=1e-3)


def test_a_memory_learns_from_activations_and_is_the_same_again():
    random = torch.Generator().manual_seed(0)
    labels = (torch.rand(60, 3, generator=random) > 0.5).float()
    activation = torch.rand(60, 8, 2, 2, generator=random) + torch.cat([labels, torch.zeros(60, 5)], 1)[..., None, None]
    recipe = Recipe(slots=4, epochs=6, batch=16, rate=1e-2)
    memory, figures = fit_memory(activation, labels, 4 * labels - 2, "multi-label", recipe)
    again, _ = fit_memory(activation, labels, 4 * labels - 2, "multi-label", recipe)
    untrained = Memory.seeded(0, 8, (2, 2), 3, slots=4)
    assert figures["epochs"] == 6
    assert memory.losses(activation, labels).total < untrained.losses(activation, labels).total
    for name, tensor in memory.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_a_memory_without_likeness_answers_the_same_and_is_like_nothing():
    memory = Memory.seeded(0, 8, (2, 2), 3, slots=4)
    activation = torch.rand(5, 8, 2, 2)
    blank = without_likeness(memory)
    query = activation.mean((2, 3))
    assert torch.equal(blank(query), memory(query))
    assert not blank.likeness(activation).any()
    assert memory.likeness(activation).any()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The whole study, tiny: two seeds, one epoch, four test canvases of each kind."""
    out = tmp_path_factory.mktemp("study")
    sizes = Sizes(unit=2, each=4, epochs=1, recipe=Recipe(slots=8, epochs=2))
    return out, study(out, seeds=2, sizes=sizes, workers=1)


def test_the_study_writes_a_row_for_each_seed_method_target_and_company(done):
    out, _ = done
    with (out / "maps.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["seed"], row["target"], row["context"], row["canvases"], row["method"]) for row in rows}
    assert len(rows) == len(found) == 2 * len(TARGETS) * 2 * 2 * len(METHODS_SHOWN)
    assert {row["n"] for row in rows if row["canvases"] == "all"} == {"4"}


def test_the_tables_come_from_the_files_alone(done):
    out, tables = done
    assert markdown(read_csv(out / "maps.csv"), read_csv(out / "classifiers.csv")) == tables
    assert (out / "tables.md").read_text(encoding="utf-8") == tables
    assert (out / "maps.png").stat().st_size > 10_000
