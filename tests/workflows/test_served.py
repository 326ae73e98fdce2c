"""Models behind a server, by the Open Inference Protocol: to a classifier, or an error that says why not."""

import json
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from storage.errors import ConfigurationError, LucencyError, ModelError
from tests.black_box_models import INPUT, Serving, answers, built, network, rounding, serving, some_images
from workflows import open_inference
from workflows.configuration import Model
from workflows.models import build_classifier, describe, fetch_model


@pytest.fixture
def no_patience(monkeypatch):
    monkeypatch.setattr(open_inference, "_BACKOFF", 0.01)


def assert_arrived(found: Tensor, server: Serving) -> None:
    """What the server answered last arrives to the bit, in the order of the images; and it is the network's answer."""
    sent = torch.cat(server.answered)[-len(found) :]
    assert torch.equal(found, sent)
    assert ((found - network()(some_images())).abs() <= rounding(network(), some_images())).all()


class TestServed:
    @pytest.mark.parametrize("extensions", [[], ["binary_tensor_data"]])
    def test_it_answers_as_the_model_does(self, extensions):
        with serving(network(), extensions=extensions) as server:
            classifier = built(server.url)
            assert_arrived(answers(classifier, some_images()), server)
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
            assert_arrived(answers(built(server.url), some_images()), server)

    def test_a_server_that_takes_few_images_a_request_gets_few(self):
        with serving(network(), most=1) as server:
            classifier = built(server.url)
            server.asked.clear()
            assert_arrived(answers(classifier, some_images()), server)
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
            assert_arrived(answers(classifier, some_images()), server)
            assert server.faults == []

    @pytest.mark.usefixtures("no_patience")
    @pytest.mark.parametrize("status", [500, 503])
    def test_a_server_that_fails_ends_the_run_and_not_an_image(self, status):
        with serving(network()) as server:
            classifier = built(server.url)
            server.faults += [status] * 20
            with pytest.raises(LucencyError, match=f"does not answer .HTTP {status}.*run the audit again") as fault:
                answers(classifier, some_images())
        assert not isinstance(fault.value, ModelError)
        assert "PatientSecret" not in str(fault.value)

    @pytest.mark.usefixtures("no_patience")
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
            model = Model(source=server.url, input=INPUT, server={"token_env": "SERVER_TOKEN"})
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
