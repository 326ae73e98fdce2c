"""What is refused before anything starts, because the model or the packages cannot do it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from storage.errors import ConfigurationError
from workflows.configuration import Configuration, check
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


def _asked(folder: Path, *methods: str, factory: str = "factory") -> Configuration:
    name = f"model_of_{folder.name.replace('-', '_')}"
    (folder / f"{name}.py").write_text(_MODEL)
    return check(
        {
            "run": "run",
            "archive": {"location": "archive"},
            "model": {"source": f"python:{name}.{factory}"},
            "explain": {"methods": list(methods)},
        }
    )


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
