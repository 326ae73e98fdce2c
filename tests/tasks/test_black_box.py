"""A classifier of which only the answers are known is profiled and explained by methods that need answers alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from storage.errors import ModelError
from tasks.answers import are_shares, logits_of
from tasks.cams.heads import Head
from tasks.cams.names import MethodName
from tasks.cams.scaling import CommonScale
from tasks.capture import capturing
from tasks.explain import ExplainSettings, explain_shard
from tasks.profile import Profile, ProfileSettings, profile_shard
from tests.tasks.small_classifiers import QUICK_METHODS, deep_head, names, pictures, pixels, rounding, small, some_truth

_PAINTED = ("glas", "glas-light", "glas-shadow", "rglas")


def black_box(model):
    return replace(model, layer=None)


def hooks(module):
    return sum(len(part._forward_hooks) for part in module.modules())


def profiled(model, images, **settings):
    asked = ProfileSettings(("glas", "glas-light"), batch=3, rules=QUICK_METHODS, **settings)
    return profile_shard(model, images, names(images), some_truth(len(images)), asked)


def explained(model, images, methods, limits=None, **settings):
    asked = ExplainSettings(tuple(MethodName.parse(name) for name in methods), batch=3, rules=QUICK_METHODS, **settings)
    return explain_shard(model, images, names(images), some_truth(len(images)), asked, limits=limits or {}, masks={})


@pytest.mark.parametrize("method", ["gradient", "meaningful-perturbation"])
def test_a_model_without_a_target_layer_can_still_be_differentiated_as_a_whole(method):
    model, images = small(deep_head()), pictures(2)
    closed, opened = (explained(one, images, [method], targets="all", columns=5) for one in (black_box(model), model))
    assert closed.maps[method].shape == (2, 5, 15, 15)
    whole = [
        explained(one, images, [method], map="input", targets="all", columns=5) for one in (black_box(model), model)
    ]
    most = np.abs(whole[1].maps[method].astype(np.float32)).max()
    np.testing.assert_allclose(whole[0].maps[method], whole[1].maps[method], rtol=0, atol=2**-9 * most)  # float16
    assert opened.maps[method].shape == (2, 5, 4, 4)


def test_a_black_box_is_asked_without_a_hook_or_a_graph(device):
    model = black_box(small(deep_head(), device=device))
    model.module.requires_grad_(True)
    seen = []
    handle = model.module.trunk.register_forward_hook(
        lambda module, _inputs, output: seen.append((hooks(model.module), output.requires_grad))
    )
    with capturing(model) as capture:
        forward = capture(pixels(model, pictures(3)))
    assert seen == [(1, False)]  # this test's own hook
    handle.remove()
    with torch.no_grad():
        expected = model.module(pixels(model, pictures(3)))
    assert (forward.logits - expected).abs().max() <= rounding(model, pixels(model, pictures(3)))
    assert not forward.logits.requires_grad


@pytest.mark.parametrize("axes", [2, 3])
def test_its_activation_has_no_feature_and_a_cell_for_each_of_glas(axes):
    model = black_box(small())
    model = replace(model, module=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(5)))
    batch = torch.zeros(4, 3, *[8] * axes)
    model.module(batch)
    with capturing(model) as capture:
        assert capture(batch).activation.shape == (4, 0, *[15] * axes)


def test_its_head_is_a_black_box_whose_gradients_have_no_feature(device):
    model = black_box(small(device=device))
    targets = torch.tensor([[0, 4], [1, 1], [3, 2]], device=device)
    with capturing(model) as capture:
        forward = capture(pixels(model, pictures(3)))
        head = Head.recognise(model.module, forward, "float32")
        chunks = list(head.gradients(forward, targets, 1))
    assert (head.name, head.constant) == ("black-box", False)
    assert [columns for columns, _ in chunks] == [slice(0, 2)]
    assert chunks[0][1].dense().values.shape[:3] == (3, 2, 0)


@pytest.mark.parametrize("task", ["one-label", "multi-label"])
def test_its_maps_are_those_of_the_same_model_with_a_layer(task, device):
    model, images = small(deep_head(), task=task, device=device), pictures(5)
    settings = {"targets": "all", "columns": 5, "map": (9, 7)}
    with_layer = explained(model, images, _PAINTED, **settings)
    without = explained(black_box(model), images, _PAINTED, **settings)
    assert without.failures == {}
    np.testing.assert_allclose(without.logits, with_layer.logits, rtol=0, atol=rounding(model, pixels(model, images)))
    for name in _PAINTED:
        assert without.maps[name].astype(np.float32).std() > 0
        most = np.abs(with_layer.maps[name].astype(np.float32)).max()
        np.testing.assert_allclose(without.maps[name], with_layer.maps[name], rtol=0, atol=2**-9 * most)  # float16


def test_its_native_maps_have_a_cell_for_each_of_glas():
    assert explained(black_box(small()), pictures(2), ["glas"]).maps["glas"].shape == (2, 1, 15, 15)


def test_its_levels_scale_its_maps_and_its_profile_tells_of_no_feature():
    model, images = black_box(small(deep_head())), pictures(7)
    profile = Profile.from_bytes(profiled(model, images, extrema=True).profile.to_bytes())
    arrays = profile.arrays()
    assert {"levels/glas/histogram", "levels/glas-light/minima", "logits/mean"} <= arrays.keys()
    assert not [name for name in arrays if name.startswith(("features/", "importance/"))]
    limits = profile.limits("glas")
    found = explained(model, images, ["s-glas"], {"glas": limits}, targets="all", columns=5)
    raw = explained(model, images, ["glas"], targets="all", columns=5)
    scale = CommonScale.between(limits, model.classes, layer=None)
    expected = scale.apply(torch.from_numpy(raw.maps["glas"].astype(np.float32)), torch.arange(5))
    np.testing.assert_allclose(found.maps["s-glas"], expected, atol=5e-3)
    share = (found.maps["s-glas"].astype(np.float32) < 0.1).mean((0, 2, 3))
    np.testing.assert_allclose(share, 0.1, atol=0.03)


def test_profiles_of_its_shards_merge_to_that_of_the_whole():
    model, images = black_box(small(deep_head())), pictures(6)
    asked = ProfileSettings(("glas",), batch=3, rules=QUICK_METHODS)
    truth = some_truth(6)

    def part(rows):
        some = [images[row] for row in rows]
        chosen = replace(truth, labelled=truth.labelled[rows], positive=truth.positive[rows])
        return profile_shard(model, some, names(some), chosen, asked).profile

    whole, merged = part([0, 1, 2, 3, 4, 5]), part([0, 1, 2]).merge(part([3, 4, 5]))
    np.testing.assert_array_equal(merged.levels["glas"].cells.keys, whole.levels["glas"].cells.keys)
    np.testing.assert_array_equal(merged.levels["glas"].cells.counts, whole.levels["glas"].cells.counts)


def test_limits_without_a_span_do_not_blame_a_layer_that_it_has_not():
    with pytest.raises(ModelError, match=r"Does the model answer all images alike\? Choose wider limits"):
        CommonScale.between(np.zeros((1, 2)), ["only"], layer=None)


def test_an_answer_that_is_not_finite_costs_its_image_alone():
    class Breaks(torch.nn.Module):
        def forward(self, images):
            return torch.where(images[:, :1].mean((2, 3)) > 1.5, torch.nan, images.mean((2, 3))[:, :1].expand(-1, 5))

    images = [*pictures(2), np.full((16, 16, 3), 255, np.uint8)]
    done = explained(black_box(replace(small(), module=Breaks())), images, ["glas"])
    assert done.failures == {2: "the classifier's output is not finite for this image"}


class TestProbabilities:
    def test_logits_of_shares_give_them_back_under_softmax(self):
        shares = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).mul(6).softmax(1)
        torch.testing.assert_close(logits_of(shares, "one-label").softmax(1), shares, rtol=1e-5, atol=0)

    def test_logits_of_independent_probabilities_give_them_back_under_the_sigmoid(self):
        chances = torch.rand(50, 7, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(logits_of(chances, "multi-label").sigmoid(), chances, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("task", ["one-label", "multi-label"])
    def test_certainty_is_finite(self, task):
        logits = logits_of(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), task)
        assert torch.isfinite(logits).all()
        assert (logits[0, 1] > logits[0, 0]) & (logits[1, 0] > logits[1, 1])

    def test_what_is_not_a_number_stays_none(self):
        assert logits_of(torch.tensor([[torch.nan, 0.5]]), "multi-label").isnan().tolist() == [[True, False]]

    @pytest.mark.parametrize(
        ("answers", "task", "why"),
        [
            ([[-3.0, 4.0]], "one-label", "below 0 or above 1"),
            ([[-3.0, 4.0]], "multi-label", "below 0 or above 1"),
            ([[0.2, 0.3]], "one-label", "add up to 1"),
            ([0.2, 0.8], "one-label", r"puts out \[2\]; expected probabilities"),
        ],
    )
    def test_numbers_that_are_no_probabilities_are_refused(self, answers, task, why):
        with pytest.raises(ModelError, match=why):
            logits_of(torch.tensor(answers), task)

    def test_a_probability_just_below_one_keeps_its_distance_from_it(self):
        near = torch.tensor([[1 - 1e-6, 1e-6]])
        torch.testing.assert_close(logits_of(near, "multi-label").sigmoid(), near, rtol=0, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_shares_in_half_precision_are_shares(self, dtype):
        shares = torch.randn(4, 14, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1).to(dtype).float()
        assert (shares.sum(1) - 1).abs().max() > 1e-4
        assert are_shares(shares)

    def test_shares_are_told_from_logits(self):
        assert are_shares(torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
        assert not are_shares(torch.tensor([[0.25, 0.75], [0.5, 0.75]]))
        assert not are_shares(torch.tensor([[-0.25, 1.25]]))
        assert not are_shares(torch.tensor([[1.0]]))
