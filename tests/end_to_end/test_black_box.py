"""Audits of models that only answer: what they leave, what they do not claim, what ends them and lets them go on."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from tests.black_box_models import network, onnx_of, serving, torchscript_of, write
from tests.small_audits import Command, write_archive, write_audit

_IMAGES = 12
_METHODS = ["glas", "s-glas", "rglas"]
_EXPLAIN = {"methods": _METHODS, "targets": ["three", "seven"], "glas": {"points": 4, "iterations": 2}}
_INPUT = {"resize": [64, 64], "channels": 1, "mean": [0.25], "std": [0.25]}
_CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def _audit(folder: Path, source: str, *, run: str = "run", **changes: Any) -> Path:
    model = {"source": source, "classes": _CLASSES, "input": _INPUT} | changes.pop("model", {})
    return write_audit(folder, run=run, model=model, explain={**_EXPLAIN, **changes.pop("explain", {})}, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a network beside it as ONNX and as TorchScript."""
    folder = tmp_path_factory.mktemp("black-box")
    write_archive(folder, _IMAGES)
    write(folder, "model.onnx", onnx_of(network(10)))
    write(folder, "model.pt", torchscript_of(network(10)))
    return folder


@pytest.fixture(scope="module")
def audited(lucency: Command, folder: Path) -> tuple[Path, str]:
    """An ONNX file's audit, with MLflow on."""
    done = lucency("audit", str(_audit(folder, "onnx:model.onnx", mlflow__enabled=True)), folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout + done.stderr


def test_every_image_has_its_maps_on_the_grid_of_glas(audited: tuple[Path, str]) -> None:
    maps = zarr.open_group(audited[0] / "maps.zarr", mode="r")
    assert set(maps.array_keys()) == {*_METHODS, "rglas-steps", "classes"}
    for method in _METHODS:
        values = np.asarray(maps[method], np.float32)
        assert values.shape == (_IMAGES, 2, 15, 15)
        assert np.isfinite(values).all()
        assert values.std() > 0


def test_the_profile_has_levels_and_claims_no_feature(audited: tuple[Path, str]) -> None:
    profile = zarr.open_group(audited[0] / "profile.zarr", mode="r")
    assert set(profile.group_keys()) == {"labels", "predictions", "logits", "levels"}
    assert set(profile["levels"].group_keys()) == {"glas"}  # type: ignore[union-attr]


def test_the_plan_says_that_it_is_a_black_box(audited: tuple[Path, str]) -> None:
    assert re.search(r"model .*model\.onnx, layer -, head black-box", audited[1])


def test_the_run_says_what_the_model_was(audited: tuple[Path, str]) -> None:
    state = json.loads((audited[0] / "run.json").read_text())
    assert state["model"]["runtime"] == "ONNX Runtime"
    assert state["model"]["layer"] is None
    assert len(state["model"]["weights_sha256"]) == 64
    assert "onnxruntime" in state["versions"]


def test_the_report_tells_of_answers_and_not_of_layers(audited: tuple[Path, str]) -> None:
    html = (audited[0] / "report.html").read_text()
    assert "Answers alone." in html
    assert "the model was only asked" in html
    assert "None" not in re.sub(r"data:image/[^\"]*", "", html)
    for absent in ("Importance matrix", "#features", "target layer", "One layer of one model", str(audited[0].parent)):
        assert absent not in html


# MLflow maps a table in a way that SQLAlchemy 2.1 warns of, and warns of its own type hints.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
def test_mlflow_is_told_the_same(audited: tuple[Path, str]) -> None:
    mlflow = pytest.importorskip("mlflow")
    state = json.loads((audited[0] / "run.json").read_text())
    assert state["mlflow"]
    client = mlflow.MlflowClient(f"sqlite:///{audited[0].parent / '.lucency' / 'mlflow.db'}")
    data = client.get_run(state["mlflow"]).data
    assert (data.params["model.layer"], data.params["model.head"]) == ("-", "black-box")
    assert (data.params["model.source"], data.params["model.runtime"]) == ("onnx:model.onnx", "ONNX Runtime")
    assert "level.high/glas/three" in data.metrics


def test_another_file_under_the_same_name_is_another_audit(lucency: Command, audited: tuple[Path, str]) -> None:
    folder = audited[0].parent
    original = (folder / "model.onnx").read_bytes()
    changed = network(10)
    changed[4].bias[0] += 1
    (folder / "model.onnx").write_bytes(onnx_of(changed))
    try:
        done = lucency("audit", str(folder / "run.yaml"), folder=folder)
    finally:
        (folder / "model.onnx").write_bytes(original)
    assert done.returncode == 1
    assert "the model's weights or class names" in done.stderr


def test_torchscript_gives_the_maps_that_onnx_gives(lucency: Command, audited: tuple[Path, str]) -> None:
    folder = audited[0].parent
    config = _audit(folder, "torchscript:model.pt", run="scripted", model={"trust": "pickle"})
    done = lucency("audit", str(config), folder=folder)
    assert done.returncode == 0, done.stderr
    ours, theirs = (zarr.open_group(folder / run / "maps.zarr", mode="r") for run in ("scripted", "run"))
    for method in ("glas", "s-glas"):
        np.testing.assert_allclose(np.asarray(ours[method], np.float32), theirs[method], rtol=5e-3, atol=5e-3)


def test_an_audit_whose_server_fails_goes_on_when_it_is_back(lucency: Command, audited: tuple[Path, str]) -> None:
    """The server answers for a while, then no more: no image is rejected for it."""
    folder = audited[0].parent
    told = {"outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}]}
    with serving(network(10), extensions=["binary_tensor_data"], model=told, fails_after=60) as server:
        few = {"methods": ["glas", "s-glas"]}
        config = _audit(folder, server.url, run="served", explain=few, engine__workers=2)
        broken = lucency("audit", str(config), folder=folder)
        assert broken.returncode == 1
        assert "the server of model.source does not answer (HTTP 500)" in broken.stderr
        assert (folder / "served" / "catalogue.parquet").exists()
        server.fails_after = None
        done = lucency("audit", str(config), folder=folder)
        assert done.returncode == 0, done.stderr
    assert pq.read_table(folder / "served" / "rejected.parquet").num_rows == 0
    ours, theirs = (zarr.open_group(folder / run / "maps.zarr", mode="r") for run in ("served", "run"))
    for method in ("glas", "s-glas"):
        np.testing.assert_allclose(np.asarray(ours[method], np.float32), theirs[method], rtol=5e-3, atol=5e-3)
    html = (folder / "served" / "report.html").read_text()
    assert "http:chest" in html
    assert "127.0.0.1" not in html


def test_methods_that_need_features_are_refused_before_anything_starts(lucency: Command, folder: Path) -> None:
    config = _audit(folder, "onnx:model.onnx", run="refused", explain={"methods": ["grad-cam"]})
    done = lucency("audit", str(config), folder=folder)
    assert done.returncode == 2
    assert "explain.methods: grad-cam: this needs the model's features" in done.stderr
    assert not (folder / "refused" / "run.json").exists()
