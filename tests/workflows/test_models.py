"""From `model:` in the configuration to a classifier that is what the user meant, or an error that says why not."""

import io
import os
import pickle
import re
import shutil
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn
from torchvision import models as zoo

from storage.errors import ConfigurationError, ModelError
from workflows.configuration import Model
from workflows.models import build_classifier, describe, fetch_model
from workflows.weights import weights_digest

FACTORY = """
import torch
from tasks.preprocess import Preprocess

classes = ("healthy", "ill")
preprocess = Preprocess(resize=(16, 16), crop=None, channels=1, mean=(0.5,), std=(0.25,))

def factory():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
"""

# The same, told how many logits are wanted.
SIZED = FACTORY.replace('classes = ("healthy", "ill")\n', "").replace("factory()", "factory(outputs)")
SIZED = SIZED.replace("Linear(4, 2)", "Linear(4, outputs)")


def sized(outputs):
    """A state dict of SIZED's network."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Identity(), nn.Identity(), nn.Linear(4, outputs)).state_dict()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(1)
    return zoo.resnet18(weights=None, num_classes=3).eval()


@pytest.fixture(scope="module")
def weights(resnet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet.pt"
    torch.save(resnet.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights of a T-DenseNet."""
    path = tmp_path_factory.mktemp("t-densenet") / "trained.pt"
    torch.manual_seed(2)
    torch.save(zoo.DenseNet(32, (6, 12), 64, num_classes=14).state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A configuration's folder, forgotten by Python afterwards."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


def as_published(name):
    """A parameter's name as torchvision's files of 2017 (DenseNet) and 2021 (ViT) have it."""
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name)
    return re.sub(r"mlp\.([03])\.", lambda found: f"mlp.linear_{int(found[1]) // 3 + 1}.", name)


def built(folder=None, **keys):
    """As a worker gets it: through pickle. Models of torchvision see small images unless a test says otherwise."""
    if keys["source"].startswith("torchvision:"):
        keys.setdefault("input", {"resize": 64, "crop": 64})
    package = fetch_model(Model(**keys), folder=str(folder) if folder else None)
    return build_classifier(pickle.loads(pickle.dumps(package)), "cpu")


class TestTorchvision:
    def test_the_classifier_is_the_model_whose_weights_were_given(self, resnet, weights):
        classifier = built(source="torchvision:resnet18", weights=str(weights), classes=["a", "b", "c"], input={})
        images = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(classifier.module(images), resnet(images), rtol=0, atol=0)
        assert classifier.classes == ("a", "b", "c")
        assert classifier.layer == "layer4"
        assert classifier.preprocess.size == (224, 224)
        assert classifier.preprocess.mean == (0.485, 0.456, 0.406)

    def test_the_module_is_frozen_and_in_evaluation_mode(self, weights):
        module = built(source="torchvision:resnet18", weights=str(weights)).module
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())

    def test_its_own_weights_bring_imagenets_names(self, monkeypatch):
        state = zoo.resnet18(weights=None).state_dict()
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_args, **_keys: state)
        classifier = built(source="torchvision:resnet18", weights="DEFAULT")
        assert classifier.classes[817] == "sports car"
        assert torch.equal(classifier.module.fc.weight, state["fc.weight"])

    def test_own_weights_that_cannot_be_fetched_are_a_clear_error(self, monkeypatch):
        def offline(*_args, **_keys):
            raise OSError("no route")

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
        with pytest.raises(ModelError, match="DEFAULT of torchvision:resnet18 cannot be fetched"):
            built(source="torchvision:resnet18", weights="DEFAULT")

    def test_an_unknown_name_is_answered_with_the_nearest(self, weights):
        with pytest.raises(ModelError, match=r"no classifier 'resnet19'. Nearest: resnet18"):
            built(source="torchvision:resnet19", weights=str(weights))

    def test_models_whose_weights_do_not_say_all_are_refused(self, weights):
        with pytest.raises(ModelError, match="inception_v3 cannot be rebuilt from a state dict"):
            built(source="torchvision:inception_v3", weights=str(weights))

    def test_weights_must_be_named(self):
        with pytest.raises(ModelError, match=r"model\.weights: missing; expected the file or URL"):
            built(source="torchvision:resnet18")

    def test_weights_of_an_older_torch_without_batch_counters_are_taken(self, weights, tmp_path):
        state = torch.load(weights, weights_only=True)
        old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
        assert len(old) < len(state)
        torch.save(old, tmp_path / "old.pt")
        assert built(source="torchvision:resnet18", weights=str(tmp_path / "old.pt")).classes

    def test_weights_of_another_model_are_refused_with_the_differences(self, weights):
        with pytest.raises(ModelError, match="does not fit") as refusal:
            built(source="torchvision:resnet34", weights=str(weights))
        assert "80 missing" in str(refusal.value)  # torch supplies the batch counters that old files lack
        with pytest.raises(ModelError, match=r"layer1.0.conv1.weight: expected \[64, 64, 1, 1\], got \[64, 64, 3, 3\]"):
            built(source="torchvision:resnet50", weights=str(weights))


class TestTDenseNet:
    def test_it_keeps_512_channels_on_28_by_28_cells_and_its_head_has_a_closed_form(self, trained):
        classifier = built(source="lucency:t-densenet121", weights=str(trained))
        description = describe(classifier)
        assert (description.features, description.native, description.input) == (512, (28, 28), (224, 224))
        assert description.head == "relu-gap-linear"
        assert len(description.classes) == 14
        state = torch.load(trained, weights_only=True)
        assert all(torch.equal(state[name], tensor) for name, tensor in classifier.module.state_dict().items())

    def test_it_sees_images_as_densenet_121_does(self, trained, tmp_path):
        torch.save(zoo.densenet121(weights=None, num_classes=2).state_dict(), tmp_path / "full.pt")
        full = built(source="torchvision:densenet121", weights=str(tmp_path / "full.pt"), input={})
        assert built(source="lucency:t-densenet121", weights=str(trained)).preprocess == full.preprocess

    def test_its_weights_must_be_given_and_fit(self, trained):
        with pytest.raises(ModelError, match=r"model\.weights: missing; expected the file or URL of a state dict\."):
            built(source="lucency:t-densenet121")
        with pytest.raises(ModelError, match="lucency:t-densenet121 needs a file or a URL"):
            built(source="lucency:t-densenet121", weights="DEFAULT")
        with pytest.raises(ModelError, match="does not fit"):
            built(source="torchvision:densenet121", weights=str(trained))

    def test_another_name_is_answered_with_the_one_there_is(self, trained):
        with pytest.raises(ModelError, match=r"no network 'densenet'; expected lucency:t-densenet121"):
            built(source="lucency:densenet", weights=str(trained))


class TestWeights:
    def test_a_training_scripts_wrapping_is_taken_off(self, resnet, weights, tmp_path):
        wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in resnet.state_dict().items()}}
        torch.save(wrapped, tmp_path / "checkpoint.pt")
        one = built(source="torchvision:resnet18", weights=str(tmp_path / "checkpoint.pt"))
        other = built(source="torchvision:resnet18", weights=str(weights))
        assert weights_digest(one.module) == weights_digest(other.module)

    def test_a_pickle_is_not_opened_unless_trusted(self, tmp_path):
        torch.save(Trap(tmp_path / "sprung"), tmp_path / "trap.pt")
        with pytest.raises(ModelError, match=r"not a file of plain tensors.*model\.trust: pickle"):
            built(source="torchvision:resnet18", weights=str(tmp_path / "trap.pt"))
        assert not (tmp_path / "sprung").exists()

    def test_a_trusted_pickle_is_opened_on_the_driver_and_workers_get_plain_tensors(self, resnet, tmp_path):
        torch.save(resnet, tmp_path / "whole.pt")
        model = Model(source="torchvision:resnet18", weights=str(tmp_path / "whole.pt"), trust="pickle")
        package = fetch_model(model, folder=None)
        assert package.form == "state"
        (tmp_path / "plain.pt").write_bytes(package.weights)
        state = torch.load(tmp_path / "plain.pt", weights_only=True)
        assert torch.equal(state["fc.weight"], resnet.fc.weight)

    def test_a_file_without_tensors_is_refused(self, tmp_path):
        torch.save({"epoch": 3, "loss": 0.1}, tmp_path / "log.pt")
        with pytest.raises(ModelError, match=r"no state dict; expected tensors by name, got \['epoch', 'loss'\]"):
            built(source="torchvision:resnet18", weights=str(tmp_path / "log.pt"))

    def test_a_file_that_is_not_there_is_a_clear_error(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"model\.weights: .*none\.pt: there is no such file"):
            built(source="torchvision:resnet18", weights=str(tmp_path / "none.pt"))

    def test_weights_come_from_a_url_too_with_its_escapes_and_its_query(self, resnet, weights, tmp_path):
        (tmp_path / "run 7%").mkdir()
        shutil.copy(weights, tmp_path / "run 7%" / "best.pt")
        handler = partial(QuietHandler, directory=str(tmp_path))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/run%207%25"
            classifier = built(source="torchvision:resnet18", weights=f"{url}/best.pt?signature=a%2Fb")
            with pytest.raises(ConfigurationError, match=r"model\.weights: cannot be fetched: .*404") as refusal:
                built(source="torchvision:resnet18", weights=f"{url}/none.pt?signature=secret")
            server.shutdown()
        assert torch.equal(classifier.module.fc.weight, resnet.fc.weight)
        assert "secret" not in str(refusal.value)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:1/none.pt", "https://", "http://a b/none.pt"])
    def test_an_address_that_leads_nowhere_is_a_clear_error(self, url):
        with pytest.raises(ConfigurationError, match=r"model\.weights: cannot be fetched"):
            built(source="torchvision:resnet18", weights=url)

    def test_a_damaged_file_is_refused_whatever_its_damage(self, weights, tmp_path):
        legacy = io.BytesIO()
        torch.save({"fc.weight": torch.ones(3)}, legacy, _use_new_zipfile_serialization=False)
        whole = {"zip": weights.read_bytes()[:200_000], "legacy": legacy.getvalue()}
        for name, data in whole.items():
            for end in range(0, len(data), max(1, len(data) // 60)):
                (tmp_path / name).write_bytes(data[:end])
                with pytest.raises(ModelError, match=r"damaged"):
                    built(source="torchvision:resnet18", weights=str(tmp_path / name))

    @pytest.mark.parametrize("name", ["densenet121", "vit_b_32"])
    def test_names_that_published_files_had_before_are_known(self, name, tmp_path):
        module = zoo.get_model(name, num_classes=3)
        state = module.state_dict()
        before = {as_published(key): tensor for key, tensor in state.items()}
        assert before.keys() != state.keys()
        torch.save(before, tmp_path / "published.pt")
        weights = str(tmp_path / "published.pt")
        classifier = built(source=f"torchvision:{name}", weights=weights, input={"resize": 224, "crop": 224})
        assert weights_digest(classifier.module) == weights_digest(module)

    def test_the_digest_tells_apart_one_bit_a_name_and_a_type(self):
        one = nn.Linear(2, 2)
        digest = weights_digest(one)
        assert digest == weights_digest(one)
        renamed = nn.Sequential(one)
        assert weights_digest(renamed) != digest
        one.bias.data[0] = torch.nextafter(one.bias.data[0], torch.tensor(9.0))
        assert weights_digest(one) != digest
        reals, integers = nn.Module(), nn.Module()
        reals.register_buffer("zeros", torch.zeros(2))
        integers.register_buffer("zeros", torch.zeros(2, dtype=torch.int32))  # the same bytes
        assert weights_digest(reals) != weights_digest(integers)


class TestClasses:
    def test_names_are_read_one_a_line(self, weights, tmp_path):
        (tmp_path / "names.txt").write_text("Mass\n\nNodule\nHernia \n", encoding="utf-8")
        classifier = built(source="torchvision:resnet18", weights=str(weights), classes=str(tmp_path / "names.txt"))
        assert classifier.classes == ("Mass", "Nodule", "Hernia")

    def test_without_names_classes_are_numbered(self, weights):
        classifier = built(source="torchvision:resnet18", weights=str(weights))
        assert classifier.classes == ("class 0", "class 1", "class 2")

    def test_a_wrong_count_is_refused(self, weights):
        with pytest.raises(ModelError, match=r"model\.classes: 2 name\(s\), but the model puts out 3 logits"):
            built(source="torchvision:resnet18", weights=str(weights), classes=["a", "b"])

    def test_a_name_that_is_there_twice_is_refused(self, weights):
        with pytest.raises(ModelError, match="a name is there twice"):
            built(source="torchvision:resnet18", weights=str(weights), classes=["a", "b", "a"])


class TestPython:
    def test_a_factory_beside_the_configuration_says_all_there_is(self, folder):
        (folder / "mine.py").write_text(FACTORY)
        description = describe(built(folder, source="python:mine.factory"))
        assert (description.features, description.native, description.input) == (4, (16, 16), (16, 16))
        assert description.classes == ("healthy", "ill")
        assert (description.layer, description.head, description.task) == ("0", "gap-linear", "one-label")

    def test_untrained_factories_give_every_worker_the_same_model(self, folder):
        (folder / "mine.py").write_text(FACTORY)
        one, other = (built(folder, source="python:mine.factory").module for _ in range(2))
        assert weights_digest(one) == weights_digest(other)

    def test_given_weights_go_into_the_factorys_module(self, folder):
        (folder / "mine.py").write_text(FACTORY)
        state = {
            name: tensor + 1 for name, tensor in built(folder, source="python:mine.factory").module.state_dict().items()
        }
        torch.save(state, folder / "w.pt")
        module = built(folder, source="python:mine.factory", weights=str(folder / "w.pt")).module
        assert torch.equal(module.state_dict()["3.bias"], state["3.bias"])

    def test_a_factory_with_outputs_gets_as_many_as_the_weights_have(self, folder):
        (folder / "mine.py").write_text(SIZED)
        torch.save(sized(5), folder / "w.pt")
        classifier = built(folder, source="python:mine.factory", weights=str(folder / "w.pt"))
        assert len(classifier.classes) == 5

    def test_a_factory_with_outputs_gets_as_many_as_there_are_classes(self, folder):
        (folder / "mine.py").write_text(SIZED)
        head_first = dict(reversed(sized(3).items()))
        torch.save(head_first, folder / "w.pt")
        keys = {"source": "python:mine.factory", "classes": ["a", "b", "c"]}
        assert built(folder, **keys).classes == ("a", "b", "c")
        assert built(folder, **keys, weights=str(folder / "w.pt")).classes == ("a", "b", "c")

    def test_the_folder_goes_behind_everything_installed(self, folder):
        (folder / "mine.py").write_text(FACTORY)
        (folder / "tasks.py").write_text("raise SystemExit('shadowed')")
        built(folder, source="python:mine.factory")
        assert sys.path[-1] == str(folder)

    def test_a_namesake_is_refused_rather_than_taken_for_the_users_file(self, folder):
        (folder / "workflows.py").write_text(FACTORY)
        with pytest.raises(ModelError, match="'workflows' beside the configuration is hidden"):
            built(folder, source="python:workflows.factory")

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            ("def other(): ...", "no function 'factory'; it has other"),
            ("def factory(): return 1", r"factory\(\) returned int; expected a torch.nn.Module"),
            ("def factory(): raise OSError('no disk')", r"factory\(\) failed: OSError: no disk"),
            ("1/0", "import of mine failed: ZeroDivisionError"),
            ("import nowhere_at_all", "no module 'nowhere_at_all'"),
            ("import torch\ndef factory(): return torch.nn.Flatten()", "does not say what the model wants to see"),
        ],
    )
    def test_what_is_wrong_with_a_factory_is_said(self, folder, code, message):
        (folder / "mine.py").write_text(code)
        with pytest.raises(ModelError, match=message):
            built(folder, source="python:mine.factory")

    def test_a_model_that_mixes_the_images_of_a_batch_is_refused(self, folder):
        mixing = FACTORY.replace("torch.nn.Flatten()", "torch.nn.Flatten(), torch.nn.LayerNorm(4), Mixing()")
        mixing = mixing.replace(
            "def factory",
            "class Mixing(torch.nn.Module):\n    def forward(self, x):\n        return x - x.mean(0)\n\ndef factory",
        )
        (folder / "mine.py").write_text(mixing)
        with pytest.raises(ModelError, match="change with the rest of its batch"):
            built(folder, source="python:mine.factory")

    def test_output_that_is_not_logits_is_refused(self, folder):
        (folder / "mine.py").write_text(FACTORY.replace("torch.nn.Flatten(), torch.nn.Linear(4, 2)", ""))
        with pytest.raises(ModelError, match=r"puts out \[2, 4, 1, 1\]; expected logits \[2, classes\]"):
            built(folder, source="python:mine.factory")


class TestInput:
    def test_the_configuration_goes_over_what_the_model_says(self, weights):
        keys = {"crop": 96, "mean": [0.5, 0.5, 0.5], "interpolation": "bicubic"}
        preprocess = built(source="torchvision:resnet18", weights=str(weights), input=keys).preprocess
        assert (preprocess.resize, preprocess.crop) == (256, 96)
        assert (preprocess.mean, preprocess.std) == ((0.5, 0.5, 0.5), (0.229, 0.224, 0.225))
        assert preprocess.interpolation == "bicubic"

    def test_a_height_and_width_are_not_cropped_away_again(self, weights):
        keys = {"resize": [128, 64]}
        preprocess = built(source="torchvision:resnet18", weights=str(weights), input=keys).preprocess
        assert preprocess.size == (128, 64)

    def test_means_that_do_not_match_the_channels_are_refused(self, weights):
        with pytest.raises(ModelError, match=r"model\.input: expected one mean and std for each of 3"):
            built(source="torchvision:resnet18", weights=str(weights), input={"mean": [0.5]})

    def test_an_input_the_model_refuses_is_reported_with_its_shape(self, folder):
        (folder / "mine.py").write_text(FACTORY)
        keys = {"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
        with pytest.raises(ModelError, match=r"refuses a batch of \[2, 3, 16, 16\]"):
            built(folder, source="python:mine.factory", input=keys)


@pytest.mark.parametrize("source", ["resnet18", "tensorflow:file.pb", "torchvision:", "onnx:", ""])
def test_an_unknown_kind_of_source_is_answered_with_those_there_are(source):
    with pytest.raises(ModelError, match=r"expected torchvision:NAME, lucency:t-densenet121, python:module\.factory"):
        built(source=source)


class Trap:
    """Leaves a folder behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_args):
        """Say nothing."""
