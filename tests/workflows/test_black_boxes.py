"""Models that only answer: from files and servers to a classifier, or an error that says why not."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from onnx import TensorProto
from torch import nn

from storage.errors import ConfigurationError, LucencyError, ModelError
from tasks.profile import ProfileSettings
from tests.black_box_models import network, onnx_of, serving, torchscript_of, write
from workflows import open_inference
from workflows.configuration import Model, check
from workflows.configuration_file import load
from workflows.models import build_classifier, describe, fetch_model
from workflows.submit import stage
from workflows.survey import load_model
from workflows.workers import ProfileWorker

_INPUT = {"resize": [64, 64], "channels": 1, "mean": [0.5], "std": [0.25]}
_METHODS = ["glas", "s-glas"]


def built(source, **keys):
    """As a worker gets it: through pickle."""
    package = fetch_model(Model(**{"source": source, "input": _INPUT, **keys}), folder=None)
    return build_classifier(pickle.loads(pickle.dumps(package)), "cpu")


def scripted(folder, module, **keys):
    return built(f"torchscript:{write(folder, 'model.pt', torchscript_of(module))}", **{"trust": "pickle", **keys})


def answers(classifier, images):
    with torch.no_grad():
        return classifier.module(images)


def some_images(count=5):
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def no_patience(monkeypatch):
    monkeypatch.setattr(open_inference, "_BACKOFF", 0.01)


class TestTorchScript:
    def test_it_answers_as_the_model_did(self, tmp_path):
        module = network()
        classifier = scripted(tmp_path, module, classes=["a", "b", "c"])
        assert torch.equal(answers(classifier, some_images()), module(some_images()))
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
        assert torch.equal(answers(classifier, some_images()), network()(some_images()))

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
        torch.testing.assert_close(answers(classifier, some_images()), network()(some_images()), rtol=1e-5, atol=1e-5)

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
        torch.testing.assert_close(answers(classifier, some_images()), network()(some_images()), rtol=1e-5, atol=1e-5)

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
            f"model = Model(source={'onnx:' + str(tmp_path / 'model.onnx')!r}, input={_INPUT!r})\n"
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
        model = {"source": source, "input": _INPUT} | keys.pop("model", {})
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
        tree = {"run": "r", "archive": {"location": "a"}, "model": {"source": "onnx:none.onnx", "input": _INPUT}}
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


@pytest.mark.usefixtures("no_patience")
class TestServed:
    @pytest.mark.parametrize("extensions", [[], ["binary_tensor_data"]])
    def test_it_answers_as_the_model_does(self, extensions):
        with serving(network(), extensions=extensions) as server:
            classifier = built(server.url)
            assert torch.equal(answers(classifier, some_images()), network()(some_images()))
            description = describe(classifier)
        assert description.runtime == "served: chest, version 1, platform test"
        assert {path for method, path, _ in server.asked if method == "POST"} == {"/v2/models/chest/infer"}

    def test_what_the_server_says_of_it_decides_whether_it_is_the_same(self):
        digests = []
        for told in ({}, {}, {"versions": ["2"], "answering": "2"}, {"platform": "other"}):
            with serving(network(), model=told) as server:
                digests.append(describe(built(server.url)).weights_sha256)
        assert digests[0] == digests[1]
        assert len(set(digests)) == 3

    def test_a_version_in_the_address_is_the_one_that_is_asked(self):
        with serving(network(), model={"versions": ["1", "2"]}) as server:
            classifier = built(f"{server.url}/versions/1")
            answers(classifier, some_images())
        assert server.asked[-1][:2] == ("POST", "/v2/models/chest/versions/1/infer")
        assert "version 1," in classifier.module.asked.runtime

    def test_several_versions_want_one_to_be_named(self):
        with (
            serving(network(), model={"versions": ["1", "2"]}) as server,
            pytest.raises(ModelError, match=r"versions 1, 2 .*Say which: \.\.\./versions/2"),
        ):
            built(server.url)

    def test_another_version_that_begins_to_answer_ends_the_audit(self):
        with serving(network()) as server:
            classifier = built(server.url)
            server.model = {"answering": "7"}
            with pytest.raises(ModelError, match=r"began to answer with version 7 .*of version 1"):
                answers(classifier, some_images())

    def test_a_server_without_versions_or_tensors_told_is_asked_all_the_same(self):
        with serving(network(), model={"versions": None, "inputs": [], "outputs": [], "platform": ""}) as server:
            assert torch.equal(answers(built(server.url), some_images()), network()(some_images()))

    def test_a_server_that_takes_few_images_a_request_gets_few(self):
        with serving(network(), most=1) as server:
            classifier = built(server.url)
            server.asked.clear()
            assert torch.equal(answers(classifier, some_images()), network()(some_images()))
        assert [images for _, _, images in server.asked] == [1] * 5

    def test_a_request_that_is_refused_even_for_one_image_is_told(self):
        with (
            serving(network(), most=0) as server,
            pytest.raises(ModelError, match=r"refuses a request of one image of \[1, 64, 64\] \(HTTP 400\)"),
        ):
            built(server.url)

    def test_a_busy_server_is_asked_again(self):
        with serving(network()) as server:
            classifier = built(server.url)
            server.faults += [503, 429, 502]
            assert torch.equal(answers(classifier, some_images()), network()(some_images()))
            assert server.faults == []

    @pytest.mark.parametrize("status", [500, 503])
    def test_a_server_that_fails_ends_the_run_and_not_an_image(self, status):
        with serving(network()) as server:
            classifier = built(server.url)
            server.faults += [status] * 20
            with pytest.raises(LucencyError, match=f"does not answer .HTTP {status}.*run the audit again") as fault:
                answers(classifier, some_images())
        assert not isinstance(fault.value, ModelError)
        assert "PatientSecret" not in str(fault.value)

    def test_a_server_that_is_gone_ends_the_run_and_not_an_image(self):
        with serving(network()) as server:
            classifier = built(server.url)
        with pytest.raises(LucencyError, match=r"does not answer \(ConnectionError\)"):
            answers(classifier, some_images())
        with pytest.raises(LucencyError, match=r"does not answer \(ConnectionError\)"):
            built(server.url)

    def test_a_server_that_takes_too_long_ends_the_run(self):
        class Slow(nn.Module):
            def forward(self, images):
                import time

                time.sleep(0.4)
                return network()(images)

        with (
            serving(Slow()) as server,
            pytest.raises(LucencyError, match=r"does not answer \((ReadTimeout|ConnectionError)\)") as fault,
        ):
            built(server.url, server={"timeout": 0.05})
        assert not isinstance(fault.value, ModelError)  # also while it is tried out

    @pytest.mark.parametrize(
        "answer",
        [
            b"<html>PatientSecret</html>",
            b"[]",
            b'{"outputs": 3}',
            b'{"outputs": [{"name": "scores", "shape": [2, 3], "datatype": "FP32"}]}',
            b'{"outputs": [{"name": "scores", "shape": [2, 3], "datatype": "FP32", "data": ["PatientSecret"]}]}',
            b'{"outputs": [{"name": "other", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}',
            b'{"outputs": [{"name": "scores", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3]}]}',
            b'{"outputs": [{"name": "scores", "shape": [6], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}',
            b'{"outputs": [{"name": "scores", "shape": [3, 2], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}',
        ],
    )
    def test_an_answer_that_is_none_is_a_fault_of_the_model_and_quotes_nothing(self, answer):
        with (
            serving(network(), answer=answer) as server,
            pytest.raises(ModelError) as fault,
        ):
            built(server.url)
        assert "PatientSecret" not in str(fault.value)
        assert "model.source" in str(fault.value)

    @pytest.mark.parametrize(
        ("told", "why"),
        [
            (
                {"inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 3, 64, 64]}]},
                r"model\.input: the model wants",
            ),
            (
                {"inputs": [{"name": "a", "datatype": "UINT8", "shape": [-1, 1, 64, 64]}]},
                "of type UINT8; expected FP32",
            ),
            ({"inputs": [{"name": "a"}, {"name": "b"}]}, "expected one input; the served model has 'a', 'b'"),
            ({"outputs": [{"name": "a"}, {"name": "b"}]}, r"expected one output; .*'a', 'b'.*model\.output_name"),
            ({"outputs": [{"name": "a", "datatype": "INT64"}]}, "of type INT64"),
        ],
    )
    def test_a_model_of_other_tensors_is_refused(self, told, why):
        with (
            serving(network(), model=told) as server,
            pytest.raises(ModelError, match=why),
        ):
            built(server.url)
        assert "POST" not in {method for method, _, _ in server.asked}

    def test_one_of_several_outputs_is_chosen_by_name(self):
        outputs = [{"name": name, "datatype": "FP32", "shape": [-1, 3]} for name in ("scores", "embedding")]
        with serving(network(), model={"outputs": outputs}) as server:
            assert answers(built(server.url, output_name="scores"), some_images()).shape == (5, 3)

    def test_the_token_of_the_environment_goes_with_every_request_and_nowhere_else(self, monkeypatch):
        with serving(network(), token="hush-hush") as server:
            with pytest.raises(ModelError, match=r"HTTP 401: it wants another token"):
                built(server.url)
            with pytest.raises(
                ConfigurationError, match=r"token_env: the environment variable SERVER_TOKEN is not set"
            ):
                built(server.url, server={"token_env": "SERVER_TOKEN"})
            monkeypatch.setenv("SERVER_TOKEN", "hush-hush")
            model = Model(source=server.url, input=_INPUT, server={"token_env": "SERVER_TOKEN"})
            package = fetch_model(model, folder=None)
            monkeypatch.delenv("SERVER_TOKEN")  # workers have none
            classifier = build_classifier(pickle.loads(pickle.dumps(package)), "cpu")
            assert answers(classifier, some_images()).shape == (5, 3)
        assert "hush-hush" not in repr(package)
        assert "hush-hush" not in json.dumps(model.model_dump(mode="json"))

    def test_a_redirect_is_not_followed(self):
        with (
            serving(network(), faults=[302]) as server,
            pytest.raises(ModelError, match="HTTP 302: it redirects"),
        ):
            built(server.url)
        assert len(server.asked) == 1

    def test_a_proxy_of_the_environment_sees_nothing_of_what_is_unencrypted(self, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        monkeypatch.setenv("no_proxy", "")
        monkeypatch.setenv("NO_PROXY", "")
        with serving(network()) as server:
            assert answers(built(server.url), some_images()).shape == (5, 3)

    @pytest.mark.parametrize("host", ["10.0.0.7", "models.example.org", "127.0.0.1.example.org"])
    def test_images_go_to_another_machine_unencrypted_only_where_told(self, host, monkeypatch):
        reached = []
        monkeypatch.setattr(open_inference, "_metadata", lambda _session, url, _what: reached.append(url) or {})
        with pytest.raises(ConfigurationError, match=r"unencrypted to another machine.*model\.server\.plaintext: true"):
            fetch_model(Model(source=f"http://{host}/v2/models/m"), folder=None)
        assert reached == []
        fetch_model(Model(source=f"https://{host}/v2/models/m"), folder=None)
        fetch_model(Model(source=f"http://{host}/v2/models/m", server={"plaintext": True}), folder=None)
        assert len(reached) == 4

    @pytest.mark.parametrize(
        "source",
        [
            "https://user:hush@host/v2/models/m",
            "https://host/v2/models/m?token=hush",
            "https://host/v1/models/m",
            "https://host/v2/models/",
            "https:///v2/models/m",
            "https://[::1/v2/models/m",
        ],
    )
    def test_an_address_of_another_form_or_with_a_secret_is_refused_and_not_repeated(self, source):
        with pytest.raises(ConfigurationError, match="expected http") as refusal:
            built(source)
        assert "hush" not in str(refusal.value)

    def test_a_server_under_a_path_is_found(self):
        with serving(network()) as server:
            host = server.url.removesuffix("/v2/models/chest")
            built(f"{host}/team/v2/models/chest/")
        assert [path for _, path, _ in server.asked][:2] == ["/team/v2/models/chest", "/team/v2"]

    def test_pixels_arrive_to_the_bit_in_json_too(self):
        seen = []

        class Keeps(nn.Module):
            def forward(self, images):
                seen.append(images)
                return network()(images)

        with serving(Keeps()) as server:
            classifier = built(server.url)
            answers(classifier, some_images())
        assert torch.equal(seen[-1], some_images())
        assert np.isfinite(seen[-1].numpy()).all()


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
        Model(source=f"onnx:{write(tmp_path, 'model.onnx', onnx_of(network()))}", input=_INPUT), folder=None
    )
    monkeypatch.setattr("ray.get", lambda held: held)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    worker = ProfileWorker(package, "cpu", 1, ProfileSettings(("glas",)))
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
