"""What is refused before anything starts, because the model or the packages cannot do it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from storage.errors import ConfigurationError
from workflows.configuration import Configuration, check
from workflows.requirements import check_before
from workflows.survey import load_model

_MODEL = """
import torch
from examples.digits.digits_model import DigitsNet, classes, preprocess

class Ungraded(DigitsNet):
    def forward(self, canvas):
        with torch.no_grad():
            first = self.features[:2](canvas)
        return self.classifier(torch.flatten(self.avgpool(self.features[2:](first)), 1))

ungraded, factory = Ungraded, DigitsNet
"""


def _asked(folder: Path, *methods: str, factory: str = "factory", **model: object) -> Configuration:
    name = f"model_of_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(_MODEL)
    return check(
        {
            "run": "run",
            "archive": {"location": "archive"},
            "model": {"source": f"python:{name}.{factory}", **model},
            "explain": {"methods": list(methods)},
        }
    )


@pytest.mark.parametrize(
    ("archive", "told"),
    [
        ({}, r"explain\.memory: m-cam's memory learns from labels, and archive\.labels is not there"),
        ({"labels": {"file": "l.csv"}}, r"explain\.memory\.split: 'train' .* archive\.labels\.split does not name"),
    ],
)
def test_m_cam_is_refused_without_labels_to_learn_from(archive: dict[str, object], told: str) -> None:
    tree = {"run": "run", "archive": {"location": "a", **archive}, "model": {"source": "torchvision:resnet50"}}
    with pytest.raises(ConfigurationError, match=told):
        load_model(check({**tree, "explain": {"methods": ["s-m-cam"]}}), None)
    if "labels" in archive:
        check_before(check({**tree, "explain": {"methods": ["m-cam"], "memory": {"split": None}}}))
    check_before(check({**tree, "explain": {"methods": ["m-cam"], "memory": {"file": "memory.pt"}}}))


def test_infidelity_is_refused_where_rounding_would_swallow_its_noise() -> None:
    tree = {"run": "run", "archive": {"location": "a"}, "model": {"source": "torchvision:resnet50"}}
    judged = {"explain": {"precision": "bf16"}, "measures": {"include": ["infidelity"]}}
    with pytest.raises(ConfigurationError, match=r"measures\.include: infidelity .*explain\.precision: float32"):
        check_before(check({**tree, **judged}))
    check_before(check({**tree, **judged, "explain": {"precision": "float32"}}))
    check_before(check({**tree, **judged, "measures": {"include": ["drop"]}}))


@pytest.mark.parametrize("method", ["gradient", "s-gradient", "meaningful-perturbation"])
def test_a_model_without_a_gradient_of_its_input_is_refused_the_methods_that_need_it(
    tmp_path: Path, method: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"explain.methods: .* needs the gradient .* occlusion, rise, lime"):
        load_model(_asked(tmp_path, "grad-cam", method, factory="ungraded"), str(tmp_path))


def test_it_has_every_other_method(tmp_path: Path) -> None:
    loaded = load_model(_asked(tmp_path, "grad-cam", "occlusion", "rise", "lime", factory="ungraded"), str(tmp_path))
    assert loaded.description.features == 64
    load_model(_asked(tmp_path, "gradient", "meaningful-perturbation"), str(tmp_path))


@pytest.mark.parametrize(
    ("method", "absent", "named"),
    [
        ("occlusion", {"captum"}, "occlusion needs captum,"),
        ("lime", {"captum", "sklearn"}, "lime needs captum and sklearn,"),
        ("lime", {"sklearn"}, "lime needs sklearn,"),
    ],
)
def test_a_method_whose_package_is_not_installed_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, absent: set[str], named: str
) -> None:
    monkeypatch.setattr("workflows.requirements.find_spec", lambda name: None if name in absent else find_spec(name))
    with pytest.raises(ConfigurationError, match=rf"explain.methods: {named} .*pip install 'lucency\[baselines\]'"):
        load_model(_asked(tmp_path, "rise", method), str(tmp_path))
    load_model(_asked(tmp_path, "rise", "gradient", "meaningful-perturbation"), str(tmp_path))


def test_without_a_layer_a_model_is_only_asked_or_differentiated_as_a_whole(tmp_path: Path) -> None:
    methods = ("glas", "s-glas", "lime", "gradient", "meaningful-perturbation")
    loaded = load_model(_asked(tmp_path, *methods, layer="none"), str(tmp_path))
    assert (loaded.description.head, loaded.description.features) == ("black-box", 0)
    with pytest.raises(
        ConfigurationError, match=r"s-grad-cam: this needs a target layer.*Methods that need none: glas"
    ):
        load_model(_asked(tmp_path, "glas", "s-grad-cam", layer="none"), str(tmp_path))


@pytest.mark.parametrize(
    ("source", "model", "told"),
    [
        ("onnx:m.onnx", {"server": {"plaintext": True}}, r"model\.server: only a served model"),
        ("torchscript:m.pt", {"output_name": "y", "trust": "pickle"}, r"model\.output_name: .* no name"),
        ("onnx:m.onnx", {"layer": "layer4"}, r"model\.layer: .* no layer"),
    ],
)
def test_keys_that_a_model_has_no_use_for_are_refused(source: str, model: dict[str, object], told: str) -> None:
    asked = check(
        {
            "run": "run",
            "archive": {"location": "archive"},
            "model": {"source": source, **model},
            "explain": {"methods": ["glas"]},
        }
    )
    with pytest.raises(ConfigurationError, match=told):
        load_model(asked, None)
