"""Exported programs and registered models: hooks work in them, and they run no code that was not trusted."""

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

from storage.errors import ModelError
from tasks.capture import capturing
from workflows.configuration import Model
from workflows.models import build_classifier, describe, fetch_model

INPUT = {"crop": 64, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def built(source, server=None, **keys):
    package = fetch_model(Model(source=source, input=INPUT, **keys), folder=None, server=server)
    return build_classifier(pickle.loads(pickle.dumps(package)), "cpu")


@pytest.fixture(scope="module")
def program():
    """The bytes of a .pt2 file whose batch may be of any length."""
    batch = {0: torch.export.Dim("batch")}
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network(), (torch.randn(2, 3, 64, 64),), dynamic_shapes=(batch,)), buffer)
    return buffer.getvalue()


def rewritten(program, change):
    """The archive with every record passed through change(name, bytes) -> {name: bytes}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(program)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            for written, data in change(name, old.read(name)).items():
                new.writestr(written, data)
    return buffer.getvalue()


def test_an_exported_program_gives_the_models_logits_and_gradients(program, tmp_path):
    (tmp_path / "model.pt2").write_bytes(program)
    exported = built(f"export:{tmp_path / 'model.pt2'}", classes=["ill", "well"])
    assert exported.layer == "features"
    eager = replace(exported, module=network())
    images = torch.randn(3, 3, 64, 64)
    targets = torch.tensor([[0, 1]] * 3)
    with capturing(exported) as forward, capturing(eager) as expected:
        torch.testing.assert_close(forward(images).logits, expected(images).logits)
        torch.testing.assert_close(forward(images).gradient(targets), expected(images).gradient(targets))


def test_a_layer_inside_an_exported_program_can_be_named(program, tmp_path):
    (tmp_path / "model.pt2").write_bytes(program)
    description = describe(built(f"export:{tmp_path / 'model.pt2'}", layer="features.0"))
    assert (description.features, description.native, description.head) == (4, (62, 62), "autograd")


def test_a_batch_axis_of_fixed_length_is_refused(tmp_path):
    torch.export.save(torch.export.export(network(), (torch.randn(1, 3, 64, 64),)), tmp_path / "model.pt2")
    with pytest.raises(ModelError, match="exported with a batch axis of any length"):
        built(f"export:{tmp_path / 'model.pt2'}")


def test_a_pickled_object_in_an_exported_program_is_not_opened_unless_trusted(program, tmp_path):
    def planted(name, data):
        if not name.endswith("sample_inputs/model.pt"):
            return {name: data}
        buffer = io.BytesIO()
        torch.save(Trap(tmp_path / "sprung"), buffer)
        return {name: buffer.getvalue()}

    (tmp_path / "model.pt2").write_bytes(rewritten(program, planted))
    with pytest.raises(ModelError, match="cannot be opened"):
        built(f"export:{tmp_path / 'model.pt2'}")
    assert not (tmp_path / "sprung").exists()
    with pytest.raises(ModelError):  # the trap is no example input, but it was opened
        built(f"export:{tmp_path / 'model.pt2'}", trust="pickle")
    assert (tmp_path / "sprung").exists()


def test_a_record_that_is_neither_tensor_nor_graph_is_refused(program, tmp_path):
    planted = {"archive/data/constants/opaque_obj_0": pickle.dumps(Trap(tmp_path / "sprung"))}
    data = rewritten(program, lambda name, data: {name: data} | (planted if "byteorder" in name else {}))
    (tmp_path / "model.pt2").write_bytes(data)
    with pytest.raises(ModelError, match="neither tensors nor graph"):
        built(f"export:{tmp_path / 'model.pt2'}")


def test_a_size_that_is_more_than_arithmetic_is_refused(program, tmp_path):
    def planted(name, data):
        if not name.endswith("models/model.json"):
            return {name: data}
        graph = json.loads(data)
        replace_sizes(graph, f"__import__('pathlib').Path('{tmp_path}/sprung').touch()")
        return {name: json.dumps(graph)}

    (tmp_path / "model.pt2").write_bytes(rewritten(program, planted))
    with pytest.raises(ModelError, match="more than arithmetic"):
        built(f"export:{tmp_path / 'model.pt2'}")
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_no_program_is_refused(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"no zip")
    with pytest.raises(ModelError, match=r"not a file written by torch\.export\.save"):
        built(f"export:{tmp_path / 'model.pt2'}")


def test_weights_beside_an_exported_program_are_refused(tmp_path):
    with pytest.raises(ModelError, match="export brings its own weights"):
        built("export:model.pt2", weights="w.pt")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """An MLflow registry with one network, once exported and once pickled."""
    mlflow = pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("registry")
    server = f"sqlite:///{folder}/mlflow.db"
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(server)
    try:
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("models", (folder / "artifacts").as_uri()))
        with mlflow.start_run():
            for form in ("pt2", "pickle"):
                mlflow.pytorch.log_model(
                    network(),
                    name=form,
                    registered_model_name=form,
                    serialization_format=form,
                    pip_requirements=["torch"],
                    input_example=torch.zeros(2, 3, 64, 64).numpy(),
                )
        mlflow.MlflowClient().set_registered_model_alias("pt2", "champion", 1)
    finally:
        mlflow.set_tracking_uri(before)
    return server


# MLflow maps a table in a way that SQLAlchemy 2.1 warns of, and warns of its own type hints.
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
class TestRegistry:
    def test_an_exported_model_is_found_by_its_alias(self, registry):
        classifier = built("mlflow:models:/pt2@champion", server=registry, classes=["a", "b"])
        assert classifier.layer == "features"
        images = torch.randn(3, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(classifier.module(images), network()(images))

    def test_a_pickled_model_wants_trust(self, registry):
        with pytest.raises(ModelError, match="was logged with pickle"):
            built("mlflow:models:/pickle/1", server=registry)
        classifier = built("mlflow:models:/pickle/1", server=registry, trust="pickle")
        assert torch.equal(classifier.module.head.weight, network().head.weight)

    def test_a_model_that_is_not_there_is_a_clear_error(self, registry):
        with pytest.raises(ModelError, match="models:/none@champion cannot be had from MLflow"):
            built("mlflow:models:/none@champion", server=registry)


def network():
    torch.manual_seed(2)
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3))
    parts = {"features": features, "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "head": nn.Linear(8, 2)}
    return nn.Sequential(OrderedDict(parts)).eval()


def replace_sizes(node, expression):
    if isinstance(node, dict):
        if "expr_str" in node:
            node["expr_str"] = expression
        for value in node.values():
            replace_sizes(value, expression)
    elif isinstance(node, list):
        for value in node:
            replace_sizes(value, expression)


class Trap:
    """Leaves a folder behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))
