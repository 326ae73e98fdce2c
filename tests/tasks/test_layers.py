"""The target layer: found in every family, checked by name, and seen as [B,F,h,w]."""

import pytest
import torch
from torch import nn
from torchvision import models

from storage.errors import ModelError
from tasks.layers import TokenGrid, resolve_layer, trace

FAMILIES = [
    ("resnet18", 64, "layer4", 512, (2, 2)),
    ("densenet121", 64, "features", 1024, (2, 2)),
    ("efficientnet_b0", 64, "features", 1280, (2, 2)),
    ("mobilenet_v2", 64, "features", 1280, (2, 2)),
    ("mobilenet_v3_small", 64, "features", 576, (2, 2)),
    ("convnext_tiny", 64, "features", 768, (2, 2)),
    ("vgg11_bn", 64, "features", 512, (2, 2)),
    ("vit_b_32", 224, "encoder.layers.encoder_layer_11.ln_1", 768, (7, 7)),
    ("swin_t", 64, "norm", 768, (2, 2)),
    ("swin_v2_t", 64, "norm", 768, (2, 2)),
]


@pytest.mark.parametrize(("name", "side", "layer", "features", "native"), FAMILIES)
def test_auto_finds_the_last_layer_with_a_grid_in_every_family(name, side, layer, features, native):
    module = models.get_model(name, weights=None, num_classes=3).eval()
    target = resolve_layer(module, "auto", torch.randn(2, 3, side, side))
    assert (target.name, target.features, target.native) == (layer, features, native)


def test_the_activation_of_swin_is_turned_to_features_first():
    module = models.swin_t(weights=None, num_classes=3).eval()
    images = torch.randn(2, 3, 64, 96)
    target = resolve_layer(module, "auto", images)
    seen = outputs_of(module, images, ["norm", "permute"])
    assert target.native == (2, 3)
    torch.testing.assert_close(target.reshape(seen["norm"]), seen["permute"])


def test_a_whole_swin_stage_is_seen_as_features_last_too():
    module = models.swin_t(weights=None, num_classes=3).eval()
    target = resolve_layer(module, "features.5", torch.randn(2, 3, 64, 96))
    assert (target.features, target.native) == (384, (4, 6))


def test_norms_that_permute_for_themselves_are_seen_as_features_first():
    module = models.convnext_tiny(weights=None, num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    own = resolve_layer(module, "features.0.1", images)  # LayerNorm2d
    plain = resolve_layer(module, "features.7.2.block.2", images)  # LayerNorm behind a permutation
    assert (own.features, own.native, own.reshape) == (96, (16, 16), None)
    assert (plain.features, plain.native) == (768, (2, 2))
    assert plain.reshape is not None


def test_the_gradient_reaches_every_patch_at_vits_layer_and_none_behind_it():
    module = models.VisionTransformer(
        image_size=64, patch_size=16, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    ).eval()
    nn.init.normal_(module.heads.head.weight)  # torchvision begins with zeros
    images = torch.randn(2, 3, 64, 64)
    target = resolve_layer(module, "auto", images)
    assert target.name == "encoder.layers.encoder_layer_1.ln_1"
    assert target.reshape == TokenGrid((4, 4), prefix=1)
    assert target.reshape(gradient_at(module, images, target.name)).abs().amax(1).gt(0).all()
    last = resolve_layer(module, "encoder.layers.encoder_layer_1", images)
    assert last.reshape(gradient_at(module, images, last.name)).abs().max() == 0


def test_tokens_go_to_the_cell_of_their_patch():
    tokens = torch.arange(7.0).reshape(1, 7, 1)
    grid = TokenGrid((2, 3), prefix=1)(tokens)
    assert grid.tolist() == [[[[1, 2, 3], [4, 5, 6]]]]


def test_tokens_of_an_oblong_input_make_an_oblong_grid():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 8, 16, 16)
            self.norm1 = nn.LayerNorm(8)
            self.head = nn.Linear(8, 2)

        def forward(self, images):
            return self.head(self.norm1(self.patch(images).flatten(2).transpose(1, 2)).mean(1))

    target = resolve_layer(Patches(), "auto", torch.randn(2, 3, 32, 96))
    assert (target.name, target.native) == ("norm1", (2, 6))


class Odd(nn.Module):
    """Has one layer of every kind that cannot be explained."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.unused = nn.Conv2d(1, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(4, 2)

    def forward(self, images):
        return self.head(self.flatten(self.pool(self.relu(self.relu(self.conv(images))))))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("cnov", "does not exist in this model.* Did you mean 'conv'"),
        ("unused", "puts out no tensor in a forward"),
        ("relu", "runs 2 times in a forward"),
        ("pool", "a single cell"),
        ("flatten", r"puts out \[2, 4\]; expected \[batch, features, sides of a grid\]"),
    ],
)
def test_a_layer_that_cannot_be_explained_is_refused_with_the_reason_and_the_candidates(layer, reason):
    with pytest.raises(ModelError, match=reason) as refusal:
        resolve_layer(Odd(), layer, torch.randn(2, 1, 8, 8))
    assert "conv  Conv2d [4, 8, 8]" in str(refusal.value)


def test_auto_passes_over_a_layer_that_runs_more_than_once():
    assert resolve_layer(Odd(), "auto", torch.randn(2, 1, 8, 8)).name == "conv"


def test_auto_says_so_when_no_layer_keeps_a_grid():
    with pytest.raises(ModelError, match="No layer of this model keeps a grid"):
        resolve_layer(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), "auto", torch.randn(2, 1, 8, 8))


def test_layers_that_work_on_windows_are_no_candidates():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 4, 1)
            self.inside = nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 2)

        def forward(self, images):
            quarters = torch.cat(self.conv(images).chunk(4, dim=3))  # windows stand in the batch axis
            return self.head(self.inside(quarters).mean((2, 3)).reshape(4, -1, 4).mean(0))

    assert resolve_layer(Windows(), "auto", torch.randn(2, 1, 8, 8)).name == "conv"


def test_looking_leaves_no_hook_behind_also_after_a_failure():
    module = Odd()
    trace(module, torch.randn(2, 1, 8, 8))
    with pytest.raises(RuntimeError):
        trace(module, torch.randn(2, 3, 8, 8))
    assert not any(submodule._forward_hooks for submodule in module.modules())


def outputs_of(module, images, names):
    seen = {}
    handles = [
        module.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name in names
    ]
    with torch.no_grad():
        module(images)
    for handle in handles:
        handle.remove()
    return seen


def gradient_at(module, images, name):
    leaves = []

    def cut(_module, _inputs, output):
        leaves.append(output.detach().requires_grad_())
        return leaves[0].clone()

    handle = module.get_submodule(name).register_forward_hook(cut)
    logits = module(images)
    handle.remove()
    return torch.autograd.grad(logits[:, 0].sum(), leaves[0])[0]
