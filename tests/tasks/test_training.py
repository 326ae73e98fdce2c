"""Training: parts add up, epochs resume to the bit, the best weights are kept, and what diverges does no harm."""

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from storage.errors import ModelError
from tasks.fitting import alone, even_batches, even_parts
from tasks.losses import Loss, LossSettings
from tasks.training import Course, Training

_COURSE = Course(epochs=4, batch=16, micro=8, rate=1e-2, patience=None, criterion="loss")


def small_network(*, norm=True, dropout=0.3):
    torch.manual_seed(7)
    middle = [nn.BatchNorm2d(6)] if norm else []
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(6, 3)]
    return nn.Sequential(nn.Conv2d(3, 6, 3), *middle, nn.ReLU(), *tail)


def some_images(count, device, *, seed=0):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=random)
    positive = images.mean((2, 3)) + 0.05 * torch.randn(count, 3, generator=random) > 0.05
    return images.to(device), positive.to(device)


def begun(course=_COURSE, *, device="cpu", module=None):
    loss = Loss.of("cb-focal", np.array([3, 4, 5]), np.array([17, 16, 15]), LossSettings())
    return Training(module or small_network(), loss, course, torch.device(device))


def train(training, *, epochs=None, images=40):
    """Epochs as one worker does them."""
    learned, judged = (some_images(count, training.device, seed=seed) for count, seed in ((images, 0), (30, 1)))
    course = training.course
    while not training.done and len(training.history) != epochs:
        training.begin_epoch(0)
        total, epoch = 0.0, len(training.history)
        for batch in even_batches([0] * images, batch=course.batch, mixed=1, seed=course.seed, epoch=epoch):
            micros = ((learned[0][part], learned[1][part].float()) for part in even_parts(batch, course.micro))
            total += training.step(micros, images=len(batch)) * len(batch)
        training.average(alone, 1)
        training.end_epoch(total / images, training.answers(judged[0]), judged[1])
    return training


def judge(training, scores, positive):
    """An epoch whose answers to the validation images are as given, scores [M,1] for each of three classes or [M,3].

    Its step is of no image: only decay moves the weights.
    """
    training.begin_epoch(0)
    training.step([], images=1)
    training.end_epoch(0.5, torch.tensor(scores).expand(-1, 3), torch.tensor(positive).expand(-1, 3))


def same(one, other):
    """Whether two states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


class TestStep:
    @pytest.mark.parametrize("micro", [1, 5, 16])
    def test_micro_batches_add_up_to_the_batch(self, micro, device):
        images, positive = some_images(16, device)
        module = small_network(norm=False, dropout=0)
        course = replace(_COURSE, decay=0.1)
        training, reference = begun(course, device=device, module=module), copy.deepcopy(module).to(device)
        optimiser = torch.optim.Adam(reference.parameters(), lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss = training.loss(reference(images), positive.float())
            loss.backward()
            optimiser.step()
            micros = ((images[part], positive[part].float()) for part in even_parts(np.arange(16), micro))
            assert training.step(micros, images=16) == pytest.approx(loss.item(), rel=1e-5)
        for ours, theirs in zip(training.module.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    def test_workers_add_up_to_one_even_where_one_has_nothing(self, device):
        images, positive = some_images(16, device)
        module = small_network(norm=False, dropout=0)
        parts = np.arange(0, 6), np.arange(6, 16), np.arange(0)
        single = begun(device=device, module=copy.deepcopy(module))
        workers = [begun(device=device, module=copy.deepcopy(module)) for _ in parts]
        for _ in range(3):
            expected = single.step([(images, positive.float())], images=16)
            assert step_together(workers, parts, images, positive) == pytest.approx([expected] * 3, rel=1e-5)
        for worker in workers:
            for ours, theirs in zip(worker.module.parameters(), single.module.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    def test_what_is_frozen_stays(self):
        module = small_network()
        module[0].requires_grad_(False)
        before = copy.deepcopy(module[0].state_dict())
        assert same(dict(train(begun(module=module), epochs=1).module[0].state_dict()), dict(before))

    def test_mixed_precision_stays_near(self, device):
        exact = train(begun(device=device, module=small_network(dropout=0)))
        mixed = train(begun(replace(_COURSE, precision="bf16"), device=device, module=small_network(dropout=0)))
        assert all(parameter.dtype == torch.float32 for parameter in mixed.module.parameters())
        for ours, theirs in zip(mixed.history, exact.history, strict=True):
            assert ours["train.loss"] != theirs["train.loss"]
            assert ours["train.loss"] == pytest.approx(theirs["train.loss"], rel=0.05)

    def test_the_epoch_is_chosen_by_answers_in_float32_whatever_the_steps_are_in(self, device):
        mixed = train(begun(replace(_COURSE, precision="bf16"), device=device), epochs=1)
        images, _ = some_images(6, device)
        with torch.no_grad():
            assert torch.equal(mixed.answers(images), mixed.module.eval()(images))

    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_a_loss_that_is_no_number_changes_no_weight(self, precision, device):
        training = train(begun(replace(_COURSE, precision=precision), device=device), epochs=1)
        images, positive = some_images(16, device)
        before = copy.deepcopy(dict(training.module.named_parameters()))
        state = training.to_state()
        with pytest.raises(ModelError, match=r"diverged in epoch 2: loss nan.*training\.rate than 0\.01"):
            training.step([(images, positive.float()), (images * torch.nan, positive.float())], images=32)
        assert same(dict(training.module.named_parameters()), before)
        assert same(training.to_state()["optimiser"], state["optimiser"])

    def test_a_gradient_that_is_no_number_changes_no_weight_either(self):
        module = small_network(norm=False, dropout=0)
        training = begun(module=module)
        module[-1].weight.register_hook(lambda gradient: gradient / 0)
        before = copy.deepcopy(dict(module.named_parameters()))
        images, positive = some_images(8, "cpu")
        with pytest.raises(ModelError, match=r"norm of its gradient (nan|inf)"):
            training.step([(images, positive.float())], images=8)
        assert same(dict(module.named_parameters()), before)

    def test_a_rate_beyond_reason_ends_as_a_clear_error(self):
        with pytest.raises(ModelError, match=r"diverged in epoch 1.*training\.rate than 1e\+30"):
            train(begun(replace(_COURSE, rate=1e30), module=small_network(norm=False)))


def step_together(workers, parts, images, positive):
    """A step of workers that wait for no one: the first round finds what each would send, the second sums it."""

    class HeardError(Exception):
        pass

    sent = []

    def hear(part):
        sent.append(part.clone())
        raise HeardError

    def micros(part):
        return [(images[some], positive[some].float()) for some in even_parts(part, 4)]

    for worker, part in zip(workers, parts, strict=True):
        with pytest.raises(HeardError):
            worker.step(micros(part), images=len(images), together=hear)
    whole = torch.stack(sent).sum(0)
    return [
        worker.step(micros(part), images=len(images), together=lambda _: whole.clone())
        for worker, part in zip(workers, parts, strict=True)
    ]


class TestAverage:
    def test_workers_get_the_mean_of_their_batch_norms_and_keep_equal_weights_to_the_bit(self):
        workers = [begun() for _ in range(3)]
        for seed, worker in enumerate(workers):
            worker.module.train()(some_images(8, "cpu", seed=seed)[0])
        statistics = torch.stack([worker.module[1].running_mean for worker in workers])
        weight = workers[0].module[0].weight.detach().clone()
        sent = []
        for worker in workers:
            copy.deepcopy(worker).average(lambda part: sent.append(part.clone()) or part, 3)
        for worker in workers:
            worker.average(lambda _: sum(sent), 3)
            torch.testing.assert_close(worker.module[1].running_mean, statistics.mean(0))
            assert torch.equal(worker.module[0].weight, weight)
            assert worker.module[1].num_batches_tracked == 1


class TestResuming:
    @pytest.mark.parametrize("epochs", [1, 2, 3])
    def test_from_any_epoch_on_it_is_as_if_undisturbed_to_the_bit(self, epochs, device):
        whole = train(begun(device=device))
        saved = io.BytesIO()
        torch.save(train(begun(device=device), epochs=epochs).to_state(), saved)
        saved.seek(0)
        torch.manual_seed(99)
        state = torch.load(saved, map_location="cpu", weights_only=True)
        resumed = begun(device=device, module=small_network(norm=True))
        nn.init.zeros_(resumed.module[0].weight)
        resumed.resume(state)
        train(resumed)
        assert len(resumed.history) == 4
        assert same(resumed.to_state(), whole.to_state())
        assert same(resumed.best(), whole.best())

    def test_the_best_weights_of_before_are_kept(self):
        first = begun(replace(_COURSE, criterion="auroc"))
        judge(first, [[2.0], [1.0]], [[True], [False]])
        best = first.best()
        train(resumed := begun(replace(_COURSE, criterion="auroc")), epochs=1)
        resumed.resume(first.to_state())
        judge(resumed, [[1.0], [2.0]], [[True], [False]])
        assert same(resumed.best(), best)

    def test_chance_is_the_epochs_the_seeds_and_the_workers(self):
        drawn = set()
        for seed, rank, epochs in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)):
            training = train(begun(replace(_COURSE, seed=seed)), epochs=epochs)
            training.begin_epoch(rank)
            drawn.add(float(torch.rand(())))
        assert len(drawn) == 4


class TestEpochs:
    def test_rates_fall_as_torchs_cosine(self):
        training = begun(replace(_COURSE, epochs=6))
        optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
        train(training)
        expected = []
        for _ in range(6):
            expected.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        assert [row["rate"] for row in training.history] == expected
        assert expected[3] == pytest.approx(5e-3)

    def test_figures_are_those_of_the_validation_images(self):
        training = train(begun(), epochs=1)
        images, positive = some_images(30, "cpu", seed=1)
        logits, row = training.answers(images), training.history[0]
        assert row["validation.loss"] == pytest.approx(training.loss(logits, positive.float()).item())
        aurocs = [roc_auc_score(positive[:, c], logits[:, c]) for c in range(3)]
        precisions = [average_precision_score(positive[:, c], logits[:, c]) for c in range(3)]
        assert row["validation.auroc"] == pytest.approx(np.mean(aurocs))
        assert row["validation.average precision"] == pytest.approx(np.mean(precisions))
        assert same(training.best(), dict(training.module.state_dict()))

    def test_learning_lowers_the_loss(self):
        history = train(begun(replace(_COURSE, epochs=15), module=small_network(dropout=0))).history
        assert history[-1]["validation.loss"] < 0.8 * history[0]["validation.loss"]

    @pytest.mark.parametrize(("criterion", "kept"), [("loss", 1), ("auroc", 0), ("average precision", 0)])
    def test_the_best_epoch_is_the_criterions_and_of_equals_the_first(self, criterion, kept):
        training = begun(replace(_COURSE, criterion=criterion))
        states = []
        for margin in ([3.0, 2.0], [0.5, -0.5], [9.0, 8.0], [-3.0, -1.0]):  # only in the last is the order wrong
            judge(training, [[margin[0]], [margin[1]]], [[True], [False]])
            states.append(training.to_state()["module"])
        assert not same(states[0], states[1])
        assert training.best_epoch == kept
        assert same(training.best(), states[kept])

    def test_it_ends_when_patience_does(self):
        training = begun(replace(_COURSE, epochs=10, patience=2))
        ended = []
        for margin in (1.0, 2.0, 1.5, 2.0):
            judge(training, [[margin], [-margin]], [[True], [False]])
            ended.append(training.done)
        assert ended == [False, False, False, True]
        assert training.best_epoch == 1

    def test_without_patience_it_ends_after_all_epochs(self):
        training = begun(replace(_COURSE, epochs=3))
        ended = []
        for margin in (3.0, 2.0, 1.0):
            judge(training, [[margin], [-margin]], [[True], [False]])
            ended.append(training.done)
        assert ended == [False, False, True]

    def test_a_class_of_one_label_is_left_out_of_the_means(self):
        training = begun()
        judge(
            training,
            [[2.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 2.0, 0.0]],
            [[True, True, False], [False, True, False], [True, True, False]],
        )
        assert training.history[0]["validation.auroc"] == 0.5
        assert training.history[0]["validation.average precision"] == pytest.approx((1 + 2 / 3) / 2)

    def test_where_no_class_is_left_figures_are_missing_and_no_criterion(self):
        judge(training := begun(), [[2.0], [1.0]], [[True], [True]])
        assert np.isnan(training.history[0]["validation.auroc"])
        assert np.isnan(training.history[0]["validation.average precision"])
        for criterion in ("auroc", "average precision"):
            training = begun(replace(_COURSE, criterion=criterion))
            with pytest.raises(ModelError, match=rf"training\.criterion is {criterion}.*no class has both"):
                judge(training, [[2.0], [1.0]], [[True], [True]])
            assert training.history == []

    def test_answers_that_are_no_numbers_end_it_with_the_best_weights_kept(self):
        training = train(begun(), epochs=1)
        best = training.best()
        with pytest.raises(ModelError, match=r"diverged in epoch 2.*on the validation images nan"):
            judge(training, [[torch.nan] * 3], [[True] * 3])
        assert len(training.history) == 1
        assert same(training.best(), best)

    def test_answers_are_those_of_a_network_at_rest(self, device):
        training = train(begun(device=device), epochs=1)
        images, _ = some_images(6, device)
        first = training.answers(images)
        assert torch.equal(first, training.answers(images))
        assert not first.requires_grad
        torch.testing.assert_close(training.answers(images[:1]), first[:1])
