"""The plan: fits a terminal, counts what the settings cost, and says what does not go together before anything runs."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from storage.errors import ConfigurationError
from tasks.atlas import Regions
from tasks.baselines import LimeMap, MeaningfulPerturbation, OcclusionMap, RiseMap
from tasks.methods import METHODS
from tasks.search_points import Field
from workflows.cluster import Placement
from workflows.configuration import Configuration, check
from workflows.judging import judging_forwards
from workflows.learned_split import Split
from workflows.models import ModelDescription
from workflows.plan import Plan, Stage, fit_stages, further_forwards
from workflows.rules import rules_of
from workflows.survey import ArchiveFacts, Settings, settle

_CLASSES = ("Mass", "Nodule", "Hernia")
_MODEL = ModelDescription(
    features=2048,
    native=(7, 7),
    classes=_CLASSES,
    weights_sha256="0" * 64,
    layer="layer4",
    input=(224, 224),
    task="multi-label",
    head="gap-linear",
)
_FACTS = ArchiveFacts(
    catalogued=1_000_000,
    images=999_990,
    rejected=10,
    shard_images=256,
    shards=3907,
    file_bytes=10**13,
    shard_bytes=10**9,
    labels={"Mass": 5, "Nodule": 7},
    labelled=900,
    most_labels=2,
)


def _asked(**explain: object) -> Configuration:
    return check(
        {
            "run": "run",
            "archive": {"location": "archive"},
            "model": {"source": "torchvision:resnet50"},
            "explain": explain,
        }
    )


def test_the_text_of_a_hospitals_archive_fits_80_columns() -> None:
    stage = Stage("catalogue", "driver", 9_999_999, 99_999_999, 10**14, 10**14, 99_999_999, 99_999.999)
    plan = Plan(
        run="/archive/run",
        model="torchvision:resnet50",
        layer="layer4",
        head="gap-linear",
        device="cuda",
        workers=1000,
        catalogued=99_999_999,
        rejected=99_999,
        shard_images=256,
        map_bytes={"fs-s-pixel-grad-cam": 10**14},
        measures={"drop": 10**12, "sensitivity": 10**15},
        worker_bytes=10**11,
        store_bytes=10**12,
        seconds_a_forward=0.1,
        measured_on="this machine's CPU (a GPU is faster)",
        stages=(stage, stage),
    )
    lines = plan.text().splitlines()
    assert max(len(line) for line in lines) <= 80
    assert sum("100.0 TB" in line for line in lines) == 3


@pytest.mark.parametrize(
    ("targets", "columns"), [("predicted", 1), ("all", 3), ("labelled", 2), (["Hernia", "Mass"], 2)]
)
def test_targets_decide_how_many_maps_an_image_has(targets: object, columns: int) -> None:
    settings = settle(_asked(targets=targets), _MODEL, _FACTS)
    assert settings.maps.targets == columns
    assert settings.maps.bytes() == 2 * 999_990 * columns * 7 * 7 * 2


@pytest.mark.parametrize(("size", "expected"), [("native", (7, 7)), ("input", (224, 224)), ([32, 40], (32, 40))])
def test_map_size_is_the_layers_the_inputs_or_given(size: object, expected: tuple[int, int]) -> None:
    assert settle(_asked(map=size), _MODEL, _FACTS).maps.size == expected


def test_a_map_size_of_another_number_of_sides_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"explain.map: \[4, 32, 40\]; the model's input has 2 sides"):
        settle(_asked(map=[4, 32, 40]), _MODEL, _FACTS)


def test_the_iterations_of_rglas_have_maps_too() -> None:
    maps = settle(_asked(methods=["rglas"], glas={"iterations": 4}), _MODEL, _FACTS).maps
    assert maps.steps == {"rglas-steps": 4}
    assert maps.bytes() == 5 * maps.method_bytes("rglas")


@pytest.mark.parametrize(
    ("bases", "glas", "forwards"),
    [
        (["grad-cam"], {}, 0),
        (["glas", "glas-light", "glas-shadow"], {}, 451),  # one look for the three, and for all classes
        (["glas", "rglas"], {"points": 2, "iterations": 3}, 9 + 5 * 3 * 10),
        # A coarse look, and a closer one that each class has for itself.
        (["glas"], {"coarse": 5, "share": 0.2}, 51 + 5 * (2 * 5 * 9 + 1)),
        (["score-cam", "glas"], {"points": 1}, 2048 + 3),
    ],
)
def test_further_forwards_are_those_that_methods_and_classes_do_not_share(
    bases: list[str], glas: dict[str, object], forwards: int
) -> None:
    rules = rules_of(_asked(glas=glas).explain, bases)
    assert further_forwards(rules, bases, _MODEL, 5) == forwards


@pytest.mark.parametrize(("classes", "batch", "forwards"), [(3, 32, 1), (3, 4, 2), (1000, 32, 63)])
def test_masks_before_a_deep_head_cost_a_forward_for_each_batch_of_them(
    classes: int, batch: int, forwards: int
) -> None:
    """2 C + 2 masks, of each method that has principal features; GLAS has none."""
    asked = _asked(methods=["grad-cam", "layer-cam", "s-layer-cam", "glas"])
    asked = asked.model_copy(update={"engine": asked.engine.model_copy(update={"batch": batch})})
    deep = replace(_MODEL, classes=(*_CLASSES, *map(str, range(classes - 3))), head="autograd")
    settings = settle(asked, deep, _FACTS)
    costs = judging_forwards(settings.profile, settings.explain, deep)
    assert costs["features"] == pytest.approx(settings.explain.measures.perturbed * 2 * forwards)
    assert "features" not in judging_forwards(settings.profile, settings.explain, replace(deep, head="gap-linear"))


@pytest.mark.parametrize(
    ("features", "first", "epochs"),
    [
        ("cached", (4 * 900 * 2048 * 49, 900), (4 * 900 * 2048 * 49 * 30, 0)),
        ("recomputed", (0, 900), (10**13 * 30, 27_000)),
    ],
)
def test_a_fit_of_a_memory_is_two_stages(features: str, first: tuple[int, int], epochs: tuple[int, int]) -> None:
    """Of the first: bytes written and forwards; of the second, at most: bytes read and forwards."""
    asked = _asked(methods=["m-cam"], memory={"features": features, "epochs": 30, "slots": 100})
    split = Split(asked.archive, pa.table({}), _FACTS, np.arange(999_990) < 900)
    placement = Placement("cuda", 2, 1, {"num_gpus": 1}, 1.0, 0.5)
    seen, fitted = fit_stages(asked.explain.memory, _MODEL, split, placement, 0.1)
    assert (seen.name, seen.images, seen.reads) == ("features", 900, 10**13)
    assert (seen.writes, seen.forwards) == first
    assert (fitted.name, fitted.images, fitted.writes) == ("memory", 27_000, 4 * 4 * 100 * 2048 * 49)
    assert (fitted.reads, fitted.forwards) == epochs
    assert fitted.device_hours == pytest.approx(epochs[1] * 0.1 / 3600)


def test_search_points_of_a_volume_are_a_cube() -> None:
    rules = rules_of(_asked(glas={"points": 3}).explain, ["glas"], axes=3)
    assert further_forwards(rules, ["glas"], _MODEL, 1) == 2 * 27 + 1


def test_sigmas_in_mm_are_refused_where_no_image_says_how_large_it_is() -> None:
    asked = _asked(methods=["glas"], glas={"unit": "mm"})
    with pytest.raises(ConfigurationError, match=r"explain\.glas\.unit: mm needs images"):
        settle(asked, _MODEL, _FACTS)
    settle(asked, _MODEL, replace(_FACTS, spaced=1))
    settle(_asked(methods=["grad-cam"], glas={"unit": "mm"}), _MODEL, _FACTS)


def test_an_atlas_that_no_volume_lies_in_is_refused() -> None:
    model = replace(_MODEL, native=(4, 4, 4), input=(8, 8, 8))
    regions = Regions(("one",), torch.ones(1, 8, 8, 8), Field((8, 8, 8), (1.0, 1.0, 1.0)), "digest")
    facts = replace(_FACTS, spaced=_FACTS.images, sides=frozenset({(8, 8, 9)}))
    with pytest.raises(ConfigurationError, match=r"explain\.atlas: it has 8 x 8 x 8 voxels, and no volume"):
        settle(_asked(), model, facts, regions)
    settle(_asked(), model, replace(facts, spaced=3), regions)  # the others may be multi-frame files
    settle(_asked(), model, replace(facts, sides=frozenset({(8, 8, 9), (8, 8, 8)})), regions)


def test_a_coarse_grid_that_does_not_fit_is_refused_with_the_key() -> None:
    with pytest.raises(ConfigurationError, match=r"explain\.glas\.coarse: expected a divisor of points \(15\)"):
        rules_of(_asked(glas={"coarse": 4}).explain, ["glas"])


def _methods(*names: str, **baselines: object) -> Settings:
    return settle(_asked(methods=list(names), targets="all", baselines=baselines), _MODEL, _FACTS)


def test_what_classes_share_is_counted_once_and_the_rest_for_each_class() -> None:
    settings = _methods(
        "rise", "lime", "occlusion", "gradient", "meaningful-perturbation", "rglas", "glas", "glas-light"
    )
    shared = 2000 + 1000 + (13**2 + 1) + 451
    assert further_forwards(settings.explain.rules, settings.explain.rules, _MODEL, 3) == shared + 3 * (
        2 + 2 * 300 + 10 * 452
    )


def test_what_is_configured_of_the_baselines_is_what_they_do() -> None:
    rules = _methods(
        "occlusion", "rise", "lime", "meaningful-perturbation",
        occlusion_cells=20, occlusion_window=4, occlusion_stride=2, rise_masks=10, rise_cells=5, rise_share=0.3,
        lime_samples=50, lime_cells=9, lime_width=0.5, lime_ridge=0.1, perturbation_cells=14, perturbation_steps=20,
        perturbation_rate=0.2, perturbation_l1=0.3, perturbation_tv=0.4, perturbation_beta=2.5,
    ).explain.rules  # fmt: skip
    assert rules == {
        "occlusion": OcclusionMap(cells=20, window=4, stride=2),
        "rise": RiseMap(masks=10, cells=5, share=0.3),
        "lime": LimeMap(samples=50, cells=9, width=0.5, ridge=0.1),
        "meaningful-perturbation": MeaningfulPerturbation(cells=14, steps=20, rate=0.2, l1=0.3, tv=0.4, beta=2.5),
    }


def test_the_defaults_are_those_of_the_methods() -> None:
    assert rules_of(_asked().explain, METHODS) == METHODS


@pytest.mark.parametrize(("window", "stride"), [(3, 4), (16, 1)])
def test_squares_that_leave_gaps_or_do_not_fit_are_refused(window: int, stride: int) -> None:
    with pytest.raises(ConfigurationError, match=r"explain.baselines: .*occlusion_stride <= occlusion_window"):
        _asked(baselines={"occlusion_window": window, "occlusion_stride": stride})


def test_a_class_the_model_does_not_have_is_refused_with_those_it_has() -> None:
    with pytest.raises(ConfigurationError, match=r"no class 'Fracture'.*'Mass', 'Nodule', 'Hernia'"):
        settle(_asked(targets=["Fracture"]), _MODEL, _FACTS)


def test_labels_of_another_vocabulary_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="none of the labels"):
        settle(_asked(), _MODEL, replace(_FACTS, labels={"mass": 3}))


def test_labelled_targets_without_labels_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs labels"):
        settle(_asked(targets="labelled"), _MODEL, replace(_FACTS, most_labels=0, labelled=0, labels={}))


def test_masks_from_true_importance_without_labels_are_refused() -> None:
    asked = _asked(methods=["fs-grad-cam"], features={"importance": "true"})
    with pytest.raises(ConfigurationError, match="needs labels"):
        settle(asked, _MODEL, replace(_FACTS, labelled=0, labels={}, most_labels=0))
