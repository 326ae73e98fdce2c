"""Fitting a memory: who judges, in which order images come, what a step is, when it ends, and that it can go on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ModelError
from tasks.fitting import Figures, Fitting, Recipe, decisions, epoch_batches, even_batches, even_parts, held_out
from tasks.memory import pooled

_RECIPE = Recipe(slots=6, epochs=4, batch=8, rate=1e-2, patience=2)
_SHAPE = (5, 2, 3)


def some_features(count=40, *, seed=0):
    """Two classes that differ in which features are active."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.nn.functional.one_hot(torch.arange(count) % 3, 3).float()
    patterns = torch.rand(3, *_SHAPE, generator=random) * 3
    activation = torch.relu(labels @ patterns.flatten(1) + torch.randn(count, 30, generator=random) * 0.2)
    return activation.view(count, *_SHAPE), labels


def batches_of(recipe, shards, epoch):
    return epoch_batches(shards, batch=recipe.batch, mixed=recipe.mixed, seed=recipe.seed, epoch=epoch)


def fit(activation, labels, *, recipe=_RECIPE, workers=1, epochs=3, start=None):
    """Epochs as a worker does them, the parts of all workers added up one after another."""
    fitting = start or Fitting(recipe, _SHAPE, 3, "cpu")
    for epoch in range(len(fitting.history), epochs):
        learned = 0.0
        for batch in batches_of(recipe, [row // 10 for row in range(len(labels))], epoch):
            if workers == 1:
                losses = fitting.step(activation[batch], labels[batch], images=len(batch))
            else:
                losses = step_together(fitting, activation, labels, batch, workers)
            learned += float(losses.total) * len(batch) / len(labels)
        judged = Figures.of(fitting.memory, activation, labels, labels, "one-label")
        fitting.end_epoch(learned, judged)
    return fitting


def step_together(fitting, activation, labels, batch, workers):
    """What all workers but one would send, then the step of the last one."""
    sent = []

    def hear(part):
        sent.append(part.clone())
        raise InterruptedError

    for rank in range(workers - 1):
        mine = batch[rank::workers]
        with pytest.raises(InterruptedError):
            fitting.step(activation[mine], labels[mine], images=len(batch), together=hear)
    mine = batch[workers - 1 :: workers]
    return fitting.step(
        activation[mine], labels[mine], images=len(batch), together=lambda part: torch.stack([*sent, part]).sum(0)
    )


class TestHeldOut:
    def test_a_patient_is_held_out_whole(self):
        groups = [f"p{row // 3}" for row in range(60)]
        out = held_out(groups, np.ones((60, 2), bool), Recipe(held_out=0.25))
        assert out.reshape(20, 3).sum(1).tolist() == [3 if part else 0 for part in out[::3]]
        assert out.sum() == 15

    def test_names_have_no_say_and_the_seed_has(self):
        positive = np.ones((40, 1), bool)
        first = held_out([f"a{row}" for row in range(40)], positive, Recipe())
        assert np.array_equal(first, held_out([f"{row * 7}" for row in range(40)], positive, Recipe()))
        assert not np.array_equal(first, held_out([f"a{row}" for row in range(40)], positive, Recipe(seed=1)))

    @given(seed=st.integers(0, 50), share=st.floats(0.01, 0.99))
    def test_every_class_keeps_an_example_to_learn_from(self, seed, share):
        random = np.random.default_rng(seed)
        positive = random.random((30, 4)) < 0.15
        positive[0] = True  # each class has one example at least
        out = held_out([str(row // 2) for row in range(30)], positive, Recipe(seed=seed, held_out=share))
        assert 0 < out.sum() < 30
        assert positive[~out].any(0).all()

    @pytest.mark.parametrize("groups", [["a", "a", "a"], ["a", "b", "b"]])
    def test_where_none_can_be_spared_it_says_so(self, groups):
        positive = np.array([[True, False], [False, True], [False, True]])
        with pytest.raises(ModelError, match="none of these can be spared"):
            held_out(groups, positive, Recipe())


class TestOrder:
    @given(shards=st.lists(st.integers(0, 9), min_size=1, max_size=80).map(sorted), epoch=st.integers(0, 5))
    def test_an_epoch_shows_every_image_once_in_full_batches(self, shards, epoch):
        batches = batches_of(_RECIPE, shards, epoch)
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(shards)))
        assert all(len(batch) == _RECIPE.batch for batch in batches[:-1])

    @given(shards=st.lists(st.integers(0, 9), min_size=1, max_size=80).map(sorted), batch=st.integers(1, 90))
    def test_even_batches_are_the_same_order_in_as_few_parts_of_one_size_or_one_less(self, shards, batch):
        asked = dict(batch=batch, mixed=3, seed=4, epoch=2)
        full, even = epoch_batches(shards, **asked), even_batches(shards, **asked)
        assert np.array_equal(np.concatenate(full), np.concatenate(even))
        sizes = [len(part) for part in even]
        assert len(even) == len(full)
        assert max(sizes) <= batch
        assert max(sizes) - min(sizes) <= 1

    def test_of_no_positions_there_are_no_parts(self):
        assert even_parts(np.zeros(0, np.int64), 4) == []

    def test_no_more_than_the_mixed_shards_are_read_side_by_side(self):
        shards = np.repeat(np.arange(12), 16)
        order = shards[np.concatenate(batches_of(Recipe(mixed=3, batch=8), shards.tolist(), 0))].reshape(4, -1)
        assert [len(np.unique(part)) for part in order] == [3, 3, 3, 3]
        assert len(np.unique(order[0][:8])) > 1  # and not one after another
        assert np.unique(order[0]).tolist() != [0, 1, 2]  # nor are neighbours always together

    def test_epochs_differ_and_are_the_same_again(self):
        first, again, second = (batches_of(_RECIPE, [0] * 30, epoch) for epoch in (0, 0, 1))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[0], second[0])


class TestStep:
    def test_a_step_is_the_optimisers_on_the_gradient_of_the_objective(self):
        activation, labels = some_features(8)
        fitting = Fitting(_RECIPE, _SHAPE, 3, "cpu")
        reference = Fitting(_RECIPE, _SHAPE, 3, "cpu").memory
        optimiser = torch.optim.Adam(reference.parameters(), lr=_RECIPE.rate)
        for _ in range(3):
            losses = reference.losses(activation, labels)
            optimiser.zero_grad()
            losses.total.backward()
            optimiser.step()
            told = fitting.step(activation, labels, images=8)
            assert float(told.total) == pytest.approx(float(losses.total.detach()), rel=1e-6)
        for name, value in reference.state_dict().items():
            assert torch.equal(fitting.memory.state_dict()[name], value), name

    @pytest.mark.parametrize("workers", [2, 3, 9])  # nine share a batch of eight: one has no image
    def test_workers_that_share_a_batch_do_the_same_step(self, workers):
        activation, labels = some_features(8)
        alone, shared = Fitting(_RECIPE, _SHAPE, 3, "cpu"), Fitting(_RECIPE, _SHAPE, 3, "cpu")
        for _ in range(3):
            whole = alone.step(activation, labels, images=8)
            parts = step_together(shared, activation, labels, np.arange(8), workers)
            assert float(parts.total) == pytest.approx(float(whole.total), rel=1e-5)
        for name, value in alone.memory.state_dict().items():
            torch.testing.assert_close(shared.memory.state_dict()[name], value, atol=2e-4, rtol=2e-3)

    def test_it_learns(self):
        activation, labels = some_features(60)
        fitting = fit(activation, labels, recipe=Recipe(slots=6, batch=8, rate=1e-2, epochs=40), epochs=40)
        told = fitting.history
        assert told[-1]["held-out.loss"] < 0.5 * told[0]["held-out.loss"]
        assert told[-1]["held-out.agreement"] > 0.9 > told[0]["held-out.agreement"]
        assert told[-1]["held-out.address.slots"] < 3 < 6 == _RECIPE.slots

    def test_the_same_seed_gives_the_same_memory_and_another_another(self):
        activation, labels = some_features()
        first, again = (fit(activation, labels).best().state_dict() for _ in range(2))
        other = fit(activation, labels, recipe=Recipe(**{**_KEYS, "seed": 1})).best().state_dict()
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["keys"], other["keys"])


_KEYS = {"slots": 6, "epochs": 4, "batch": 8, "rate": 1e-2, "patience": 2}


class TestEnd:
    def test_the_best_memory_is_kept_and_patience_ends_the_fit(self):
        fitting = Fitting(_RECIPE, _SHAPE, 3, "cpu")
        kept = []
        for loss in (3.0, 2.0, 2.5, 2.0):
            assert not fitting.done
            kept.append(fitting.memory.keys.detach().clone())
            fitting.end_epoch(1.0, figures(loss))
            fitting.step(*some_features(4), images=4)
        assert fitting.best_epoch == 1
        assert fitting.done
        assert torch.equal(fitting.best().keys, kept[1])

    def test_patience_is_counted_from_the_best_epoch(self):
        fitting = Fitting(Recipe(slots=6, epochs=9, patience=2), _SHAPE, 3, "cpu")
        ended = []
        for loss in (3.0, 2.0, 2.5, 2.0):
            fitting.end_epoch(1.0, figures(loss))
            ended.append(fitting.done)
        assert ended == [False, False, False, True]

    def test_the_last_epoch_ends_it_too(self):
        fitting = Fitting(_RECIPE, _SHAPE, 3, "cpu")
        for loss in (4.0, 3.0, 2.0):
            fitting.end_epoch(1.0, figures(loss))
        assert not fitting.done
        fitting.end_epoch(1.0, figures(1.0))
        assert fitting.done

    @pytest.mark.parametrize(("learned", "judged"), [(float("nan"), 1.0), (1.0, float("inf"))])
    def test_a_loss_that_is_no_number_ends_it_with_the_key_that_may_help(self, learned, judged):
        fitting = Fitting(_RECIPE, _SHAPE, 3, "cpu")
        with pytest.raises(ModelError, match=r"after epoch 1: the fit diverged.*explain\.memory\.rate than 0\.01"):
            fitting.end_epoch(learned, figures(judged))

    def test_from_its_state_it_goes_on_to_the_bit(self):
        activation, labels = some_features()
        whole = fit(activation, labels, epochs=4)
        state = fit(activation, labels, epochs=2).to_state()
        resumed = Fitting.resumed(_RECIPE, _SHAPE, 3, "cpu", state)
        resumed = fit(activation, labels, epochs=4, start=resumed)
        assert resumed.history == whole.history
        for name, value in whole.best().state_dict().items():
            assert torch.equal(resumed.best().state_dict()[name], value), name

    def test_the_best_memory_goes_on_with_it(self):
        fitting = Fitting(_RECIPE, _SHAPE, 3, "cpu")
        fitting.step(*some_features(4), images=4)
        fitting.end_epoch(1.0, figures(2.0))
        best = fitting.memory.keys.detach().clone()
        fitting.step(*some_features(4), images=4)
        fitting.end_epoch(1.0, figures(3.0))
        assert torch.equal(Fitting.resumed(_RECIPE, _SHAPE, 3, "cpu", fitting.to_state()).best().keys, best)

    def test_a_state_is_not_changed_by_what_comes_after(self):
        activation, labels = some_features()
        fitting = fit(activation, labels, epochs=2)
        state = fitting.to_state()
        before = state["memory"]["keys"].clone(), len(state["history"])
        moments = [moment["exp_avg"].clone() for moment in state["optimiser"]["state"].values()]
        fit(activation, labels, epochs=4, start=fitting)
        assert torch.equal(state["memory"]["keys"], before[0])
        assert len(state["history"]) == before[1]
        after = [moment["exp_avg"] for moment in state["optimiser"]["state"].values()]
        assert all(torch.equal(a, b) for a, b in zip(moments, after, strict=True))


def figures(loss):
    sums = torch.tensor([1.0, loss, 0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    return Figures(sums, 1, torch.tensor([1.0, 0, 0, 0, 0, 0], dtype=torch.float64))


class TestFigures:
    @pytest.mark.parametrize("task", ["one-label", "multi-label"])
    def test_any_split_of_the_images_gives_the_same_figures(self, task):
        activation, labels = some_features(30)
        memory, logits = Fitting(_RECIPE, _SHAPE, 3, "cpu").memory, torch.randn(30, 3)
        whole = Figures.of(memory, activation, labels, logits, task).means()
        parts = Figures.empty(6)
        for rows in (slice(0, 4), slice(4, 5), slice(5, 30)):
            parts = parts.merge(Figures.of(memory, activation[rows], labels[rows], logits[rows], task))
        assert parts.means() == pytest.approx(whole, rel=1e-5)

    @pytest.mark.parametrize("task", ["one-label", "multi-label"])
    def test_they_are_what_a_loop_over_images_finds(self, task):
        activation, labels = some_features(12)
        memory, logits = Fitting(_RECIPE, _SHAPE, 3, "cpu").memory, torch.randn(12, 3)
        told = Figures.of(memory, activation, labels, logits, task).means()
        peaks, spreads, same, mean = [], [], [], torch.zeros(6)
        for row in range(12):
            query = pooled(activation[row : row + 1])
            address = memory.address(query)[0].detach()
            peaks.append(float(address.max()))
            spreads.append(float((-(address * address.log()).sum()).exp()))
            mean += address / 12
            own = memory(query)[0]
            if task == "one-label":
                same.append(float(own.argmax() == logits[row].argmax()))
            else:
                same += [float((own[c] > 0) == (logits[row, c] > 0)) for c in range(3)]
        assert told["address.peak"] == pytest.approx(np.mean(peaks), rel=1e-5)
        assert told["address.slots"] == pytest.approx(np.mean(spreads), rel=1e-5)
        assert told["agreement"] == pytest.approx(np.mean(same))
        assert told["slots.used"] == pytest.approx(float((-(mean * mean.log()).sum()).exp()), rel=1e-5)
        assert told["loss"] == pytest.approx(float(memory.losses(activation, labels).total.detach()), rel=1e-5)

    def test_workers_add_theirs_up(self):
        activation, labels = some_features(10)
        memory, logits = Fitting(_RECIPE, _SHAPE, 3, "cpu").memory, torch.randn(10, 3)
        first, second = (
            Figures.of(memory, activation[rows], labels[rows], logits[rows], "multi-label")
            for rows in (slice(0, 3), slice(3, 10))
        )
        sent = []
        second.together(lambda part: sent.append(part) or part)
        found = first.together(lambda part: part + sent[0])
        assert found.decisions == 30
        assert found.means() == first.merge(second).means()

    def test_of_no_image_they_are_no_numbers(self):
        assert all(np.isnan(value) for name, value in Figures.empty(6).means().items())


def test_decisions_are_one_an_image_or_one_a_class():
    logits = torch.tensor([[1.0, 2.0, -1.0], [-1.0, -2.0, -3.0]])
    assert decisions(logits, "one-label").tolist() == [1, 0]
    assert decisions(logits, "multi-label").tolist() == [[True, True, False], [False, False, False]]
