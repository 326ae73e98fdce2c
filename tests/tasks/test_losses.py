"""Losses against imbalance: torch's and torchvision's, the paper's formula, and sound where answers are certain."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from storage.errors import ModelError
from tasks.losses import LOSSES, Loss, LossSettings

_POSITIVES, _NEGATIVES = np.array([3, 40, 500]), np.array([997, 960, 500])
_SETTINGS = LossSettings()
_PRECISIONS = [torch.float32, torch.bfloat16]


def loss_of(name, settings=_SETTINGS, positives=_POSITIVES, negatives=_NEGATIVES):
    return Loss.of(name, positives, negatives, settings)


def every_answer(dtype, device):
    """Logits from -50 to 50 of three classes, each with either label."""
    logits = torch.linspace(-50, 50, 201, device=device).to(dtype).repeat(2)[:, None].repeat(1, 3)
    targets = torch.cat([torch.zeros(201, 3), torch.ones(201, 3)]).to(device)
    return logits, targets


def value_and_gradient(loss, logits, targets):
    logits = logits.clone().requires_grad_()
    value = loss(logits, targets)
    value.backward()
    return value.detach(), logits.grad


def weights(name):
    """w+ and w- as the paper writes them, of exact fractions."""
    ups, downs = ([Fraction(int(n)) for n in counts] for counts in (_POSITIVES, _NEGATIVES))
    beta, alpha = Fraction(_SETTINGS.beta), Fraction(_SETTINGS.alpha)
    each = {
        "bce": ([1] * 3, [1] * 3),
        "wbce": tuple([a / (a + b) for a, b in zip(x, y, strict=True)] for x, y in ((downs, ups), (ups, downs))),
        "focal": ([alpha] * 3, [1 - alpha] * 3),
        "cb-focal": tuple([(1 - beta) / (1 - beta ** int(n)) for n in counts] for counts in (ups, downs)),
    }[name]
    return tuple(torch.tensor([float(weight) for weight in part], dtype=torch.float64) for part in each)


def literal(name, logits, targets):
    """Equation 1 with the weights of equation 2, in float64. Sigmoids of -z are written as such: no digits are lost."""
    z, y = logits.double(), targets.double()
    p, q = z.sigmoid(), (-z).sigmoid()
    positive, negative = (part.to(z.device) for part in weights(name))
    gamma = _SETTINGS.gamma if "focal" in name else 0.0
    yes = positive * q**gamma * torch.nn.functional.softplus(-z)
    no = negative * p**gamma * torch.nn.functional.softplus(z)
    return (y * yes + (1 - y) * no).mean()


@pytest.mark.parametrize("dtype", _PRECISIONS)
class TestParity:
    """Gradients of bf16 logits are rounded to bf16: to 8 binary digits."""

    def test_bce_is_torchs(self, dtype, device):
        logits, targets = every_answer(dtype, device)
        ours = value_and_gradient(loss_of("bce").to(device), logits, targets)
        theirs = value_and_gradient(lambda z, y: binary_cross_entropy_with_logits(z.float(), y), logits, targets)
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(ours[1], theirs[1], rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-10)

    def test_wbce_is_torchs_with_a_weight_an_element(self, dtype, device):
        logits, targets = every_answer(dtype, device)
        share = torch.tensor(_POSITIVES / (_POSITIVES + _NEGATIVES), dtype=torch.float32, device=device)
        weight = torch.where(targets > 0, 1 - share, share)
        ours = value_and_gradient(loss_of("wbce").to(device), logits, targets)
        theirs = value_and_gradient(
            lambda z, y: binary_cross_entropy_with_logits(z.float(), y, weight=weight), logits, targets
        )
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(ours[1], theirs[1], rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-10)

    def test_focal_is_torchvisions(self, dtype, device):
        logits, targets = every_answer(dtype, device)
        ours = value_and_gradient(loss_of("focal").to(device), logits, targets)
        theirs = value_and_gradient(
            lambda z, y: sigmoid_focal_loss(z.float(), y, alpha=0.25, gamma=2.0, reduction="mean"), logits, targets
        )
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(ours[1], theirs[1], rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-10)

    @pytest.mark.parametrize("name", LOSSES)
    def test_each_is_the_papers_equation(self, name, dtype, device):
        logits, targets = every_answer(dtype, device)
        ours = value_and_gradient(loss_of(name).to(device), logits, targets)
        exact = value_and_gradient(lambda z, y: literal(name, z, y), logits.double(), targets)
        assert ours[0].dtype == torch.float32
        torch.testing.assert_close(ours[0].double(), exact[0], rtol=1e-6, atol=0)
        rounding = 4e-3 if dtype == torch.bfloat16 else 1e-5
        # What is smaller than float32's least normal number is as good as nothing.
        torch.testing.assert_close(ours[1].double(), exact[1], rtol=rounding, atol=1e-37)


class TestCertainAnswers:
    def test_where_torchvision_loses_digits_ours_are_nearer_to_the_truth(self):
        logits, targets = every_answer(torch.float32, "cpu")
        exact = value_and_gradient(lambda z, y: literal("focal", z, y), logits.double(), targets)[1]
        ours = value_and_gradient(loss_of("focal"), logits, targets)[1]
        theirs = value_and_gradient(
            lambda z, y: sigmoid_focal_loss(z, y, alpha=0.25, gamma=2.0, reduction="mean"), logits, targets
        )[1]
        right = torch.where(targets > 0, logits > 8, logits < -8) & (exact.abs() > 1e-37)
        errors = [((found - exact) / exact)[right].abs() for found in (ours, theirs)]
        assert errors[0].max() < 1e-5
        assert errors[1].max() > 1e-2  # or this test would compare nothing
        assert (errors[0] <= errors[1] + 1e-5).all()

    @pytest.mark.parametrize("dtype", _PRECISIONS)
    @pytest.mark.parametrize("name", LOSSES)
    def test_nothing_overflows_at_logits_of_a_thousand(self, name, dtype, device):
        logits = torch.tensor([[-1000.0] * 3, [1000.0] * 3, [0.0] * 3], dtype=dtype, device=device)
        for targets in (torch.zeros(3, 3, device=device), torch.ones(3, 3, device=device)):
            value, gradient = value_and_gradient(loss_of(name).to(device), logits, targets)
            assert value.isfinite()
            assert gradient.isfinite().all()
            wrong = gradient[1 if targets[0, 0] == 0 else 0]
            assert (wrong != 0).all()  # a certain mistake can still be unlearned

    @given(z=st.floats(-50, 50, width=32), y=st.floats(0, 1, width=32), gamma=st.floats(0, 5))
    def test_any_answer_and_any_gamma(self, z, y, gamma):
        loss = loss_of("focal", LossSettings(alpha=0.25, gamma=gamma), np.array([1]), np.array([1]))
        value = loss(torch.tensor([[z]]), torch.tensor([[y]]))
        exact, p = torch.tensor(z, dtype=torch.float64), torch.tensor(z, dtype=torch.float64).sigmoid()
        yes = 0.25 * y * (-exact).sigmoid() ** gamma * torch.nn.functional.softplus(-exact)
        no = 0.75 * (1 - y) * p**gamma * torch.nn.functional.softplus(exact)
        torch.testing.assert_close(value.double(), yes + no, rtol=2e-5, atol=1e-37)


class TestWeights:
    @pytest.mark.parametrize("name", LOSSES)
    def test_each_has_the_papers_weights(self, name):
        loss = loss_of(name)
        for ours, exact in zip((loss.positive, loss.negative), weights(name), strict=True):
            torch.testing.assert_close(ours, exact.float(), rtol=1e-7, atol=0)

    def test_where_both_labels_are_as_frequent_wbce_is_half_of_bce(self):
        logits, targets = every_answer(torch.float32, "cpu")
        counts = np.array([7, 70, 700])
        half = loss_of("wbce", positives=counts, negatives=counts)(logits, targets)
        torch.testing.assert_close(half, loss_of("bce")(logits, targets) / 2, rtol=1e-7, atol=0)

    def test_class_balance_keeps_its_digits_from_one_image_to_a_hundred_million(self):
        counts = np.array([1, 10**2, 10**8])
        for beta in (0.9999, 1 - 1e-12):
            found = loss_of("cb-focal", LossSettings(beta=beta), counts, counts).positive
            small = [float((1 - Fraction(beta)) / (1 - Fraction(beta) ** n)) for n in (1, 100)]
            # Of 10^8 images, 1 - beta^N by its series where it is nearly 0, or beta^N is 0 to all digits.
            x = 1e8 * (1 - beta)
            large = (1 - beta) if beta == 0.9999 else (1 - beta) / (x - x * x / 2 + x**3 / 6)
            torch.testing.assert_close(found, torch.tensor([*small, large]), rtol=2e-7, atol=0)

    @pytest.mark.parametrize("name", LOSSES)
    @pytest.mark.parametrize(
        ("positives", "negatives", "kind"), [([5, 0], [5, 10], "positive"), ([5, 9], [4, 0], "negative")]
    )
    def test_a_class_without_either_label_is_refused_by_its_number(self, name, positives, negatives, kind):
        with pytest.raises(ModelError, match=f"is {kind} for class number 1,"):
            loss_of(name, positives=np.array(positives), negatives=np.array(negatives))

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(ValueError, match="cb-focal"):
            loss_of("hinge")
