"""The compose file against the Compose specification, and what it opens to whom."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

_ROOT = Path(__file__).parents[2]
_TEXT = (_ROOT / "deploy" / "compose.yaml").read_text()
_REQUIRED = re.compile(r"\$\{(\w+):\?[^}]*\}")
_DEFAULTED = re.compile(r"\$\{\w+:-([^}]*)\}")


def _resolved(text: str) -> dict[str, Any]:
    """The file as Compose sees it, with merges and variables filled in."""
    tree: dict[str, Any] = yaml.safe_load(_DEFAULTED.sub(r"\1", _REQUIRED.sub("/filled/in", text)))
    return tree


@pytest.fixture
def services() -> dict[str, Any]:
    tree: dict[str, Any] = _resolved(_TEXT)["services"]
    return tree


def test_compose_takes_the_file(services: dict[str, Any]) -> None:
    assert set(PyCompose.from_yaml(yaml.safe_dump(_resolved(_TEXT))).service_names()) == set(services)


def test_compose_would_notice_a_wrong_key() -> None:
    tree = _resolved(_TEXT)
    tree["services"]["ray"]["port"] = ["8265"]
    with pytest.raises(ValueError, match="port"):
        PyCompose.from_yaml(yaml.safe_dump(tree))


def test_every_port_is_open_to_this_machine_alone(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_ray_asks_for_a_token(services: dict[str, Any]) -> None:
    assert services["ray"]["environment"]["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" in _REQUIRED.findall(_TEXT)


def test_no_secret_has_a_default() -> None:
    secret = [name for name in re.findall(r"\$\{(\w+)", _TEXT) if re.search("PASSWORD|TOKEN|KEY", name)]
    assert secret
    assert set(secret) <= set(_REQUIRED.findall(_TEXT))


def test_the_example_names_every_variable_that_must_be_set() -> None:
    example = (_ROOT / "deploy" / "compose.env.example").read_text()
    assert set(re.findall(r"^(\w+)=", example, re.MULTILINE)) == set(_REQUIRED.findall(_TEXT))


def test_the_archive_cannot_be_written(services: dict[str, Any]) -> None:
    assert any(volume.endswith(":/archive:ro") for volume in services["ray"]["volumes"])


@pytest.mark.parametrize("name", ["Containerfile", "mlflow.Containerfile"])
def test_images_install_the_pinned_versions_and_do_not_run_as_root(name: str) -> None:
    text = (_ROOT / "deploy" / name).read_text()
    assert "--constraint" in text
    assert re.findall(r"^USER (\w+)", text, re.MULTILINE)[-1] != "root"


def test_the_image_holds_every_package() -> None:
    packages = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    text = (_ROOT / "deploy" / "Containerfile").read_text()
    assert set(re.findall(r"^COPY (\w+) \w+$", text, re.MULTILINE)) == {name.split(".")[0] for name in packages}
    made = next(line for line in text.splitlines() if "mkdir -p" in line)
    for package in packages:  # the layer of the dependencies is built before the code is copied
        assert re.search(rf"\b{package.replace('.', '/')}\b", made), package
