import gc

import pytest
import torch
from torch import nn

from storage.errors import ModelError
from tasks.capture import capturing
from tests.tasks.small_classifiers import (
    TwoLayers,
    classifier,
    deep_head,
    from_torchvision,
    in_place_relu_head,
    pictures,
    pixels,
    pooled_head,
    small,
)


def run(model, count=3, precision="float32"):
    with capturing(model, precision=precision) as capture:
        return capture(pixels(model, pictures(count)))


def test_the_logits_are_the_classifiers(device):
    model = small(deep_head(), device=device)
    with torch.no_grad():
        expected = model.module(pixels(model, pictures(3)))
    torch.testing.assert_close(run(model).logits, expected, rtol=1e-5, atol=1e-5)


def test_an_in_place_operation_behind_the_layer_leaves_the_activation_alone():
    model = small(in_place_relu_head())
    with torch.no_grad():
        expected = model.module.trunk(pixels(model, pictures(3)))
    activation = run(model).activation
    assert (activation < 0).any()
    torch.testing.assert_close(activation, expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_all_targets_at_once_are_those_of_one_at_a_time(device):
    model = small(deep_head(), device=device)
    forward = run(model)
    targets = torch.tensor([[0, 4], [1, 1], [3, 2]], device=device)
    found = forward.gradient(targets)
    leaf = forward.activation.clone().requires_grad_()
    for image, row in enumerate(targets.tolist()):
        for column, target in enumerate(row):
            (expected,) = torch.autograd.grad(model.module.head(leaf)[image, target], leaf)
            torch.testing.assert_close(found[image, column], expected[image], rtol=1e-5, atol=1e-6)


def test_tokens_are_seen_as_a_grid_in_activation_and_gradient():
    model = from_torchvision("vit_b_16", size=32)
    forward = run(model, 2)
    assert forward.activation.shape == (2, 768, 2, 2)
    assert forward.gradient(torch.tensor([[0], [1]])).shape == (2, 1, 768, 2, 2)


def test_the_trunk_builds_no_graph_even_if_it_could_be_trained():
    model = small()
    model.module.requires_grad_(True)
    graphs = []
    model.module.trunk[0].register_forward_hook(lambda _module, _inputs, output: graphs.append(output.requires_grad))
    model.module.head.register_forward_hook(lambda _module, _inputs, output: graphs.append(output.requires_grad))
    run(model)
    assert graphs == [False, True]


def state(module):
    return (
        [len(part._forward_hooks) for part in module.modules()],
        [part.training for part in module.modules()],
        [parameter.requires_grad for parameter in module.parameters()],
        [parameter.grad for parameter in module.parameters()],
    )


def test_everything_is_as_it_was_also_after_an_exception():
    model = small()
    model.module.train()
    model.module.head.eval()
    model.module.trunk[0].weight.requires_grad_(True)
    before = state(model.module)
    run(model)
    assert state(model.module) == before
    with pytest.raises(ZeroDivisionError):
        interrupted(model)
    assert state(model.module) == before


def interrupted(model):
    with capturing(model) as capture:
        capture(pixels(model, pictures(2))).gradient(torch.zeros(2, 1, dtype=torch.int64))
        raise ZeroDivisionError


def test_dropout_is_off_and_batch_statistics_stay():
    torch.manual_seed(0)
    head = nn.Sequential(nn.BatchNorm2d(12), nn.Dropout(0.5), *pooled_head())
    model = classifier(TwoLayers(head), "trunk")
    model.module.train()
    first, second = run(model), run(model)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(head[0].running_mean, torch.zeros(12))


def test_bf16_gives_float32_numbers_near_those_of_float32():
    model = small(deep_head())
    exact, rough = run(model), run(model, precision="bf16")
    assert rough.activation.dtype == rough.logits.dtype == torch.float32
    assert not torch.equal(rough.activation, exact.activation)
    torch.testing.assert_close(rough.logits, exact.logits, rtol=0.05, atol=0.05)
    assert rough.gradient(torch.zeros(3, 1, dtype=torch.int64)).dtype == torch.float32


class ViewsItsRows(nn.Module):
    """A trunk that only takes the plain memory layout."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, images):
        maps = self.first(images)
        rows = maps.view(len(maps), -1)
        return self.head(self.second(rows.view(maps.shape)).mean((2, 3)))


def test_a_trunk_that_needs_the_plain_memory_layout_gets_it():
    torch.manual_seed(0)
    model = classifier(ViewsItsRows(), "second")
    with torch.no_grad():
        expected = model.module(pixels(model, pictures(2)))
    torch.testing.assert_close(run(model, 2).logits, expected)


@pytest.mark.parametrize(
    ("layer", "fault"),
    [
        ("trunk.9", "does not exist"),
        ("head.2", r"puts out \[3, 5\]; expected \[batch, features, 2 sides of a grid\]"),
        ("aside", "ran 0 times"),
        ("pair", "puts out a tuple"),
    ],
)
def test_a_layer_that_cannot_be_explained_is_an_error_that_says_why(layer, fault):
    class Pair(nn.Module):
        def forward(self, images):
            return images, images

    class WithPair(TwoLayers):
        def forward(self, images):
            return super().forward(self.pair(images)[0])

    torch.manual_seed(0)
    module = WithPair(pooled_head())
    module.aside, module.pair = nn.Identity(), Pair()
    with pytest.raises(ModelError, match=fault):
        run(classifier(module, layer))


def test_a_layer_that_does_not_reach_the_logits_is_an_error():
    class SideArm(TwoLayers):
        def forward(self, images):
            self.arm(images)
            return super().forward(images)

    module = SideArm(pooled_head())
    module.arm = nn.Conv2d(3, 4, 1)
    with pytest.raises(ModelError, match=r"logits have no gradient at model\.layer 'arm'.*model\.layer: none"):
        run(classifier(module, "arm"))


def test_another_number_of_logits_than_classes_is_an_error():
    with pytest.raises(ModelError, match=r"shape \[3, 7\] from the model, got \[3, 5\]"):
        run(small(classes=7))


def test_hundreds_of_batches_leave_no_tensors_behind():
    model = small(deep_head())
    batch = pixels(model, pictures(2))

    def alive():
        gc.collect()
        return sum(type(item) is torch.Tensor for item in gc.get_objects())

    with capturing(model) as capture:
        capture(batch)
        before = alive()
        for _ in range(300):
            capture(batch).gradient(torch.zeros(2, 1, dtype=torch.int64))
        assert alive() <= before
