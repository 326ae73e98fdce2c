"""Models that only answer: from files to a classifier, or an error that says why not."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
import yaml
from onnx import TensorProto
from torch import nn

from storage.errors import ConfigurationError, ModelError
from tasks.profile import ProfileSettings
from tests.black_box_models import (
    INPUT,
    answers,
    built,
    network,
    onnx_of,
    rounding,
    some_images,
    torchscript_of,
    write,
)
from workflows.configuration import Model, check
from workflows.configuration_file import load
from workflows.models import describe, fetch_model
from workflows.submit import stage
from workflows.survey import load_model
from workflows.workers import ModelHost, ProfileWorker

_METHODS = ["glas", "s-glas"]


def scripted(folder, module, **keys):
    return built(f"torchscript:{write(folder, 'model.pt', torchscript_of(module))}", **{"trust": "pickle", **keys})


def assert_answers(classifier):
    """As the network does, but for what a compiler may do to the order of its sums."""
    error = answers(classifier, some_images()) - network()(some_images())
    assert (error.abs() <= rounding(network(), some_images())).all()


class TestTorchScript:
    def test_it_answers_as_the_model_did(self, tmp_path):
        module = network()
        classifier = scripted(tmp_path, module, classes=["a", "b", "c"])
        assert_answers(classifier)
        assert (classifier.layer, classifier.classes) == (None, ("a", "b", "c"))

    def test_it_is_known_by_its_file(self, tmp_path):
        description = describe(scripted(tmp_path, network()))
        assert description.weights_sha256 == hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
        assert (description.runtime, description.head, description.layer) == ("TorchScript", "black-box", None)
        assert (description.features, description.native, description.input) == (0, (15, 15), (64, 64))

    def test_it_wants_trust_because_it_may_run_any_code(self, tmp_path):
        with pytest.raises(ModelError, match=r"can run any code of its author.*model\.trust: pickle"):
            scripted(tmp_path, network(), trust="weights")

    def test_training_mode_is_left_behind(self, tmp_path):
        classifier = scripted(tmp_path, nn.Sequential(*network(), nn.Dropout(0.9)).train())
        assert_answers(classifier)

    def test_a_file_that_is_none_is_refused(self, tmp_path):
        with pytest.raises(ModelError, match="TorchScript program cannot be opened"):
            built(f"torchscript:{write(tmp_path, 'model.pt', b'none')}", trust="pickle")

    def test_several_outputs_are_refused(self, tmp_path):
        class Pair(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, images):
                return self.inner(images), images

        with pytest.raises(ModelError, match="puts out a tuple; expected one tensor"):
            scripted(tmp_path, Pair())

    def test_it_must_be_told_what_it_wants_to_see(self, tmp_path):
        with pytest.raises(ModelError, match="does not say what the model wants to see"):
            scripted(tmp_path, network(), input={})


class TestOnnx:
    def test_it_answers_as_the_model_did(self, tmp_path):
        classifier = built(f"onnx:{write(tmp_path, 'model.onnx', onnx_of(network()))}")
        assert_answers(classifier)

    def test_it_is_known_by_its_file(self, tmp_path):
        description = describe(built(f"onnx:{write(tmp_path, 'model.onnx', onnx_of(network()))}"))
        assert description.weights_sha256 == hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()
        assert description.runtime == "ONNX Runtime"

    def test_it_may_take_and_give_half_precision(self, tmp_path):
        data = onnx_of(network(), kind=TensorProto.FLOAT16)
        classifier = built(f"onnx:{write(tmp_path, 'model.onnx', data)}")
        found = answers(classifier, some_images())
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, network()(some_images()), rtol=2e-2, atol=2e-2)

    def test_a_batch_of_one_only_is_asked_image_by_image(self, tmp_path):
        data = onnx_of(network(), shape=(1, 1, 64, 64))
        classifier = built(f"onnx:{write(tmp_path, 'model.onnx', data)}")
        assert_answers(classifier)

    @pytest.mark.parametrize(
        ("shape", "why"),
        [
            (("n", 3, 64, 64), r"model\.input: the model wants .*\['any', 3, 64, 64\], and is given .*\[1, 64, 64\]"),
            (("n", 1, 32, 32), r"model\.input: the model wants"),
            (("n", 1, 16, 64, 64), r"model\.input: the model wants .*\['any', 1, 16, 64, 64\]"),
            ((8, 1, 64, 64), "takes 8 images at a time"),
        ],
    )
    def test_an_input_of_another_shape_is_refused_before_it_is_asked(self, tmp_path, shape, why):
        network_of_channels = network(channels=shape[1])
        data = onnx_of(network_of_channels, shape=shape) if len(shape) == 4 else _of_volumes(shape)
        with pytest.raises(ModelError, match=why):
            built(f"onnx:{write(tmp_path, 'model.onnx', data)}")

    def test_one_of_several_outputs_is_chosen_by_name(self, tmp_path):
        source = f"onnx:{write(tmp_path, 'model.onnx', onnx_of(network(), aside=True))}"
        with pytest.raises(ModelError, match=r"expected one output; .* 'scores', 'flat'.*model\.output_name"):
            built(source)
        assert answers(built(source, output_name="flat"), some_images()).shape == (5, 6)
        with pytest.raises(ModelError, match="expected one output 'none'"):
            built(source, output_name="none")

    @pytest.mark.parametrize("place", ["beside.bin", "../above.bin", "/etc/hostname"])
    def test_weights_in_another_file_are_refused_and_never_read(self, tmp_path, monkeypatch, place):
        (tmp_path / "inner").mkdir()
        monkeypatch.chdir(tmp_path / "inner")
        for path in (tmp_path / "inner" / "beside.bin", tmp_path / "above.bin"):
            path.write_bytes(network()[0].weight.numpy().tobytes())
        source = f"onnx:{write(tmp_path / 'inner', 'model.onnx', onnx_of(network(), external=place))}"
        with pytest.raises(ModelError, match="its weights lie in another file"):
            built(source)

    @pytest.mark.parametrize("data", [b"none", b"ORTM" * 20, onnx_of(network())[:200]])
    def test_a_file_that_is_none_is_refused(self, tmp_path, data):
        with pytest.raises(ModelError, match="ONNX Runtime cannot open the model"):
            built(f"onnx:{write(tmp_path, 'model.onnx', data)}")

    def test_without_onnx_runtime_it_is_said_how_to_get_it(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ModelError, match=r"pip install 'lucency\[onnx\]'"):
            built(f"onnx:{write(tmp_path, 'model.onnx', onnx_of(network()))}")

    def test_onnx_runtime_is_told_not_to_report_before_it_loads(self, tmp_path):
        write(tmp_path, "model.onnx", onnx_of(network()))
        code = (
            "import os, sys, builtins\n"
            "from workflows.configuration import Model\n"
            "from workflows.models import build_classifier, fetch_model\n"
            f"model = Model(source={'onnx:' + str(tmp_path / 'model.onnx')!r}, input={INPUT!r})\n"
            "package = fetch_model(model, folder=None)\n"
            "assert 'onnxruntime' not in sys.modules\n"
            "class Watch:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name == 'onnxruntime': print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
            "sys.meta_path.insert(0, Watch())\n"
            "build_classifier(package, 'cpu')\n"
        )
        environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        root = Path(__file__).parents[2]
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.split() == ["1"]

    def test_memory_that_runs_out_halves_the_batch_as_any_models(self, tmp_path, monkeypatch):
        classifier = built(f"onnx:{write(tmp_path, 'model.onnx', onnx_of(network()))}")

        class Full:
            def run(self, *_arguments):
                raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer")

        monkeypatch.setattr(classifier.module.asked, "_session", Full())
        with pytest.raises(torch.OutOfMemoryError):
            answers(classifier, some_images())


def _of_volumes(shape):
    """A graph that takes volumes; what it computes does not matter."""
    from onnx import helper

    nodes = [helper.make_node("ReduceMean", ["images"], ["scores"], axes=[2, 3, 4], keepdims=0)]
    tensors = [
        helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape)),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [shape[0], shape[1]]),
    ]
    graph = helper.make_graph(nodes, "volumes", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


class TestProbabilities:
    def test_answers_that_are_probabilities_become_their_logits(self, tmp_path):
        data = onnx_of(network(last=nn.Softmax(1)))
        source = f"onnx:{write(tmp_path, 'model.onnx', data)}"
        classifier = built(source, output="probabilities")
        shares = classifier.probabilities(answers(classifier, some_images()))
        torch.testing.assert_close(shares, network()(some_images()).softmax(1), rtol=1e-4, atol=1e-6)
        with pytest.raises(ModelError, match=r"add up to 1.*Set `model\.output: probabilities`"):
            built(source)

    def test_logits_are_not_taken_for_probabilities(self, tmp_path):
        with pytest.raises(ModelError, match="below 0 or above 1"):
            scripted(tmp_path, network(), output="probabilities")

    def test_probabilities_of_independent_classes_want_a_multi_label_task(self, tmp_path):
        module = network(last=nn.Sigmoid())
        with pytest.raises(ModelError, match=r"model\.task: multi-label"):
            scripted(tmp_path, module, output="probabilities")
        classifier = scripted(tmp_path, module, output="probabilities", task="multi-label")
        torch.testing.assert_close(answers(classifier, some_images()).sigmoid(), module(some_images()))


class TestRefusals:
    """Before anything is fetched, built or started."""

    def refused(self, source="onnx:none.onnx", **keys):
        model = {"source": source, "input": INPUT} | keys.pop("model", {})
        tree = {"run": "run", "archive": {"location": "archive"}, "model": model}
        with pytest.raises(ConfigurationError) as refusal:
            load_model(check(tree | {"explain": {"methods": _METHODS} | keys}), None)
        return str(refusal.value)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("onnx:none.onnx", "an ONNX model only answers"),
            ("torchscript:none.pt", "a TorchScript model only answers"),
            ("https://127.0.0.1:1/v2/models/none", "a served model only answers"),
        ],
    )
    def test_methods_that_need_features_are_answered_with_those_that_work(self, source, words):
        said = self.refused(source, methods=["glas", "grad-cam", "fs-s-score-cam"])
        assert "explain.methods: grad-cam, fs-s-score-cam: this needs the model's features" in said
        assert words in said
        assert "glas, glas-light, glas-shadow, rglas" in said

    def test_the_default_methods_are_refused_alike(self):
        tree = {"run": "r", "archive": {"location": "a"}, "model": {"source": "onnx:none.onnx", "input": INPUT}}
        with pytest.raises(ConfigurationError, match=r"grad-cam, s-grad-cam: this needs"):
            load_model(check(tree), None)

    def test_a_layer_is_refused(self):
        assert "model.layer: an ONNX model has no layer" in self.refused(model={"layer": "layer4"})

    def test_a_precision_that_is_not_ours_to_choose_is_refused(self):
        assert "explain.precision: an ONNX model computes" in self.refused(precision="bf16")

    def test_answers_of_a_model_that_can_be_looked_into_are_logits(self):
        said = self.refused("torchvision:resnet18", model={"output": "probabilities"})
        assert "model.output: only a model that cannot be looked into" in said

    @pytest.mark.parametrize("source", ["onnx:none.onnx", "torchscript:none.pt", "http://127.0.0.1:1/v2/models/none"])
    def test_weights_beside_it_are_refused(self, source):
        with pytest.raises(ModelError, match="brings its own weights"):
            built(source, weights="w.pt")


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_its_file_is_found_beside_the_configuration_and_travels_with_a_job(tmp_path, kind):
    write(tmp_path, "model.bin", b"the model")
    tree = {"run": "run", "archive": {"location": "archive"}, "model": {"source": f"{kind}:model.bin"}}
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(tree))
    audit = load(tmp_path / "audit.yaml")
    assert audit.model.source == f"{kind}:{tmp_path}/model.bin"
    (tmp_path / "staged").mkdir()
    stage(audit, tmp_path, tmp_path / "staged")
    shipped = yaml.safe_load((tmp_path / "staged" / "audit" / "audit.yaml").read_text())["model"]["source"]
    assert (tmp_path / "staged" / "audit" / shipped.removeprefix(f"{kind}:")).read_bytes() == b"the model"


def test_what_a_worker_cannot_build_is_told_with_the_shard(tmp_path, monkeypatch):
    package = fetch_model(
        Model(source=f"onnx:{write(tmp_path, 'model.onnx', onnx_of(network()))}", input=INPUT), folder=None
    )
    monkeypatch.setattr("ray.get", lambda held: held)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    worker = ProfileWorker(ModelHost(package, "cpu", 1), ProfileSettings(("glas",)))
    row = worker(pa.table({"shard": [4]})).to_pylist()[0]
    assert row["shard"] == 4
    assert "onnx models need ONNX Runtime, which is not installed" in row["error"]


def test_a_replaced_file_is_another_model(tmp_path):
    one = describe(built(f"onnx:{write(tmp_path, 'model.onnx', onnx_of(network()))}"))
    changed = network()
    changed[4].bias[0] += 1
    other = describe(built(f"onnx:{write(tmp_path, 'model.onnx', onnx_of(changed))}"))
    assert replace(one, weights_sha256=other.weights_sha256) == other
    assert one.weights_sha256 != other.weights_sha256
