"""Methods that need probabilities alone, in the same passes as the CAM family."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tasks.cams.names import MethodName
from tasks.explain import ExplainSettings, explain_shard
from tasks.glas import Glas, Recursive, fuse, look, rglas
from tasks.methods import METHODS, GlasMap, RglasMap
from tasks.profile import ProfileSettings, Truth, profile_shard
from tests.tasks.small_classifiers import deep_head, names, pictures, pixels, small, some_truth

GLAS = Glas(5)
RULES = {
    "glas": GlasMap("fusion", GLAS),
    "glas-light": GlasMap("light", GLAS),
    "glas-shadow": GlasMap("shadow", GLAS),
    "rglas": RglasMap(Recursive(GLAS, iterations=2)),
}


def explained(model, images, settings, limits=None):
    truth = some_truth(len(images))
    return explain_shard(model, images, names(images), truth, settings, limits=limits or {}, masks={})


def predict_of(model):
    return lambda inputs: model.probabilities(model.module(inputs))


@pytest.mark.parametrize("task", ["one-label", "multi-label"])
@pytest.mark.parametrize("size", [(16, 16), (6, 9)])
def test_a_pass_paints_what_light_and_shadow_tell_of_the_probabilities(task, size):
    model, images = small(deep_head(), task=task), pictures(3)
    methods = tuple(MethodName(base) for base in ("glas", "glas-light", "glas-shadow"))
    found = explained(model, images, ExplainSettings(methods, "all", 5, map=size, batch=2, rules=RULES))
    for index, image in enumerate(pixels(model, images)):
        dark = torch.full((3,), -2.0)  # black, after a mean of 0.5 and a deviation of 0.25
        looks = look(predict_of(model), image, dark, GLAS, step=2)
        for mode, name in (("fusion", "glas"), ("light", "glas-light"), ("shadow", "glas-shadow")):
            expected = fuse(looks, torch.arange(5), size, GLAS, mode=mode).numpy()
            np.testing.assert_allclose(found.maps[name][index], expected, rtol=2e-3, atol=1e-6)


def test_recursive_maps_are_searched_for_each_class():
    model, images = small(deep_head()), pictures(2)
    found = explained(model, images, ExplainSettings((MethodName("rglas"),), (1, 4), 2, map="input", rules=RULES))
    for index, image in enumerate(pixels(model, images)):
        for column, target in enumerate((1, 4)):
            expected = rglas(
                predict_of(model), image, torch.full((3,), -2.0), target, Recursive(GLAS, iterations=2), step=2
            )
            np.testing.assert_allclose(found.maps["rglas"][index, column], expected.saliency, rtol=2e-3, atol=1e-3)


def test_three_maps_and_all_classes_share_one_look(monkeypatch):
    model, images = small(deep_head()), pictures(3)
    inputs = []
    model.module.register_forward_pre_hook(lambda _, batch: inputs.append(len(batch[0])))
    methods = tuple(MethodName(base) for base in ("glas", "glas-light", "glas-shadow"))
    explained(model, images, ExplainSettings(methods, "all", 5, batch=3, rules=RULES))
    assert sum(inputs) == 3 + 3 * (2 * 25 + 1)


def test_levels_of_a_method_without_features_are_profiled_and_scale_its_map():
    model, images = small(deep_head()), pictures(4)
    settings = ProfileSettings(("glas", "grad-cam"), rules={**METHODS, **RULES})
    profile = profile_shard(model, images, names(images), some_truth(4), settings).profile
    assert list(profile.importance) == ["grad-cam"]
    assert list(profile.levels) == ["glas", "grad-cam"]
    limits = {"glas": profile.limits("glas")}
    found = explained(model, images, ExplainSettings((MethodName("glas", scaled=True),), "all", 5, rules=RULES), limits)
    low, high = (np.quantile(found.maps["s-glas"].astype(np.float64), q, axis=(0, 2, 3)) for q in (0.1, 0.9))
    np.testing.assert_allclose(low, 0.1, atol=0.06)
    np.testing.assert_allclose(high, 0.9, atol=0.06)


def test_raw_maps_of_a_class_that_is_all_but_impossible_are_not_rounded_to_nothing():
    model, images = small(), pictures(2)
    model.module.head[2].bias.data[3] = -40.0
    methods = (MethodName("glas"), MethodName("grad-cam"))
    found = explained(model, images, ExplainSettings(methods, (3,), 1, rules=METHODS | RULES))
    assert found.maps["glas"].dtype == np.float32
    assert found.maps["grad-cam"].dtype == np.float16
    assert 0 < found.maps["glas"].max() < 6e-8  # what float16 holds


def test_a_method_whose_levels_are_not_known_has_its_own_sums_only():
    model, images = small(), pictures(2)
    found = explained(model, images, ExplainSettings((MethodName("glas"),), rules=RULES))
    assert sorted(found.sums) == ["glas.individual", "glas.raw"]


@pytest.mark.parametrize(
    ("name", "why"), [("fs-glas", "no features to select"), ("s-rglas", "no common scale"), ("fs-s-rglas", "scale")]
)
def test_what_a_method_cannot_be_is_refused_with_the_reason(name, why):
    with pytest.raises(ValueError, match=why):
        MethodName.parse(name)
    assert str(MethodName.parse("s-glas-light")) == "s-glas-light"


def test_one_set_of_settings_gives_one_set_of_bits():
    model, images = small(deep_head()), pictures(3)
    settings = ExplainSettings((MethodName("glas"), MethodName("rglas")), "all", 5, rules=RULES)
    first, second = explained(model, images, settings), explained(model, images, replace(settings))
    for name, maps in first.maps.items():
        np.testing.assert_array_equal(maps, second.maps[name])


def test_a_column_without_a_class_is_not_searched():
    model, images = small(deep_head()), pictures(2)
    inputs = []
    model.module.register_forward_pre_hook(lambda _, batch: inputs.append(len(batch[0])))
    truth = Truth(np.array([True, False]), np.eye(5, dtype=bool)[[1, 2]])
    settings = ExplainSettings((MethodName("rglas"),), "labelled", 2, batch=2, rules=RULES)
    found = explain_shard(model, images, names(images), truth, settings, limits={}, masks={})
    assert np.isfinite(found.maps["rglas"]).all((2, 3)).tolist() == [[True, False], [False, False]]
    assert sum(inputs) <= 2 + 2 * (GLAS.forwards + 1)
