"""Training begins with given weights where they fit, and with what the seed draws everywhere else."""

import pickle
import re
import sys

import pytest
import torch
from torch.nn import functional
from torchvision import models as zoo

from storage.errors import ConfigurationError, ModelError
from workflows.starting import build_start, fetch_start

T_DENSENET = "lucency:t-densenet121"
FACTORY = """
import torch

def factory(outputs):
    return torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, outputs))

class HeadFirst(torch.nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.head = torch.nn.Linear(4, outputs)
        self.trunk = torch.nn.Conv2d(1, 4, 3)

def head_first(outputs):
    return HeadFirst(outputs)

def other_names(outputs):
    return torch.nn.ModuleDict({"trunk": torch.nn.Conv2d(1, 4, 3)})

def wider(outputs):
    return torch.nn.Sequential(torch.nn.Conv2d(1, 9, 3), torch.nn.Flatten(), torch.nn.Linear(9, outputs))
"""


def begun(source, weights=None, *, outputs=14, seed=0, folder=None):
    """As a worker gets it: through pickle."""
    start = fetch_start(source, None if weights is None else str(weights), trust="weights", folder=folder)
    return build_start(pickle.loads(pickle.dumps(start)), outputs, seed)


@pytest.fixture(scope="module")
def densenet():
    """DenseNet-121 in evaluation mode whose batch norms have statistics of their own, as trained ones have."""
    torch.manual_seed(3)
    network = zoo.densenet121(weights=None).eval()
    for name, tensor in network.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def full(densenet, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "densenet121.pt"
    torch.save(densenet.state_dict(), path)
    return path


def saved(state, path):
    torch.save(dict(state), path)
    return path


class TestTDenseNet:
    def test_it_is_densenet_121_up_to_its_second_dense_block(self):
        network, drawn = begun(T_DENSENET)
        assert network.features(torch.randn(1, 3, 224, 224)).shape == (1, 512, 28, 28)
        assert sum(parameter.numel() for parameter in network.parameters()) == 1_305_742
        assert set(drawn) == set(network.state_dict())

    def test_with_densenet_121s_weights_it_computes_what_densenet_121_does(self, densenet, full):
        network, drawn = begun(T_DENSENET, full)
        seen = {}
        norm = densenet.features.transition2.norm
        hook = norm.register_forward_hook(lambda _module, _inputs, output: seen.update(output=output.clone()))
        images = torch.randn(2, 3, 224, 224)
        with torch.no_grad():
            densenet(images)
            hook.remove()
            ours = functional.relu(network.eval().features(images))
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, functional.relu(seen["output"]), rtol=0, atol=0)
        assert drawn == ("classifier.weight", "classifier.bias")

    def test_the_names_of_published_files_are_known(self, densenet, full, tmp_path):
        before = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): tensor
            for name, tensor in densenet.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        assert not before.keys() <= densenet.state_dict().keys()
        one, _ = begun(T_DENSENET, saved(before, tmp_path / "before.pt"))
        other, _ = begun(T_DENSENET, full)
        assert equal(one, other)

    def test_default_is_densenet_121_on_imagenet(self, densenet, full, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "torchvision.models._api.load_state_dict_from_url",
            lambda url, **_keys: asked.append(url) or dict(densenet.state_dict()),
        )
        network, _ = begun(T_DENSENET, "DEFAULT")
        assert "densenet121" in asked[0]
        assert equal(network, begun(T_DENSENET, full)[0])

    def test_weights_of_its_own_go_on_and_another_head_is_drawn(self, tmp_path):
        own, _ = begun(T_DENSENET, outputs=3, seed=5)
        weights = saved(own.state_dict(), tmp_path / "own.pt")
        same, drawn = begun(T_DENSENET, weights, outputs=3)
        assert drawn == ()
        assert equal(same, own)
        _, drawn = begun(T_DENSENET, weights, outputs=1)
        assert drawn == ("classifier.weight", "classifier.bias")

    @pytest.mark.parametrize("name", ["densenet169", "resnet18"])
    def test_other_networks_weights_are_refused_with_what_does_not_fit(self, name, tmp_path):
        weights = saved(zoo.get_model(name, weights=None).state_dict(), tmp_path / "other.pt")
        with pytest.raises(ModelError, match=rf"models: {T_DENSENET}: (.|\n)*does not fit(.|\n)*\d+ not of this model"):
            begun(T_DENSENET, weights)


class TestTorchvision:
    def test_a_resnet_with_imagenets_1000_logits_begins_with_14(self, monkeypatch):
        imagenet = zoo.resnet50(weights=None).state_dict()
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_args, **_keys: imagenet)
        network, drawn = begun("torchvision:resnet50", "DEFAULT")
        assert drawn == ("fc.weight", "fc.bias")
        assert network.fc.weight.shape == (14, 2048)
        state = network.state_dict()
        assert all(torch.equal(state[name], imagenet[name]) for name in state if name not in drawn)
        assert network.training
        assert all(parameter.requires_grad for parameter in network.parameters())

    def test_a_network_may_be_drawn_as_a_whole(self):
        network, drawn = begun("torchvision:resnet18", outputs=2)
        assert network.fc.weight.shape == (2, 512)
        assert set(drawn) == set(network.state_dict())

    def test_imagenets_weights_that_cannot_be_fetched_are_a_clear_error(self, monkeypatch):
        def offline(*_args, **_keys):
            raise OSError("no route")

        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
        with pytest.raises(ModelError, match="DEFAULT of torchvision:densenet121 cannot be fetched"):
            begun(T_DENSENET, "DEFAULT")


class TestDraws:
    def test_what_is_drawn_follows_from_the_seed_alone(self, full):
        one, _ = begun(T_DENSENET, full, seed=1)
        torch.manual_seed(99)
        before = torch.get_rng_state()
        again, _ = begun(T_DENSENET, full, seed=1)
        assert torch.equal(torch.get_rng_state(), before)
        other, _ = begun(T_DENSENET, full, seed=2)
        assert equal(one, again)
        assert not torch.equal(one.classifier.weight, other.classifier.weight)
        assert torch.equal(one.features.norm5.weight, other.features.norm5.weight)


class TestFactories:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "path", [*sys.path])
        (tmp_path / "beginner.py").write_text(FACTORY)
        yield tmp_path
        sys.modules.pop("beginner", None)

    def test_a_factory_is_told_how_many_logits_are_wanted_and_drawn_from_the_seed(self, folder):
        one, _ = begun("python:beginner.factory", outputs=3, seed=1, folder=str(folder))
        other, _ = begun("python:beginner.factory", outputs=3, seed=2, folder=str(folder))
        assert one[2].weight.shape == (3, 4)
        assert not torch.equal(one[0].weight, other[0].weight)

    def test_its_weights_go_on_with_another_head(self, folder):
        own, _ = begun("python:beginner.factory", outputs=3, folder=str(folder))
        weights = saved(own.state_dict(), folder / "own.pt")
        network, drawn = begun("python:beginner.factory", weights, outputs=2, seed=7, folder=str(folder))
        assert drawn == ("2.weight", "2.bias")
        assert torch.equal(network[0].weight, own[0].weight)

    def test_its_head_may_lie_anywhere(self, folder):
        own, _ = begun("python:beginner.head_first", outputs=3, folder=str(folder))
        weights = saved(own.state_dict(), folder / "own.pt")
        same, drawn = begun("python:beginner.head_first", weights, outputs=3, seed=7, folder=str(folder))
        assert drawn == ()
        assert equal(same, own)
        _, drawn = begun("python:beginner.head_first", weights, outputs=2, folder=str(folder))
        assert drawn == ("head.weight", "head.bias")

    @pytest.mark.parametrize(
        ("other", "told"), [("other_names", "missing(.|\n)*not of this model"), ("wider", "4 of another shape")]
    )
    def test_weights_of_other_names_or_of_which_nothing_fits_are_refused(self, folder, other, told):
        own, _ = begun(f"python:beginner.{other}", outputs=3, folder=str(folder))
        weights = saved(own.state_dict(), folder / "own.pt")
        with pytest.raises(ModelError, match=rf"models: python:beginner\.factory: (.|\n)*{told}"):
            begun("python:beginner.factory", weights, outputs=2, folder=str(folder))

    def test_there_is_no_default_for_it(self, folder):
        with pytest.raises(ModelError, match=r"python:beginner.factory: weights: DEFAULT is torchvision's"):
            begun("python:beginner.factory", "DEFAULT", folder=str(folder))


@pytest.mark.parametrize("source", ["onnx:model.onnx", "resnet50", "torchvision:", "mlflow:models:/a@b"])
def test_only_networks_that_can_be_built_anew_are_trained(source):
    with pytest.raises(ModelError, match=r"expected torchvision:NAME, lucency:t-densenet121 or python:module\.factory"):
        fetch_start(source, None, trust="weights", folder=None)


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ConfigurationError, match=r"models: torchvision:resnet18: weights: .*none\.pt: there is no"):
        begun("torchvision:resnet18", tmp_path / "none.pt")


def equal(one, other):
    state = other.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in one.state_dict().items())
