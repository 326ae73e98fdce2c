"""Models that only answer, for tests: small networks as TorchScript and ONNX, and served."""

import io
import json
import pickle
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tasks.classifier import Classifier
from workflows.configuration import Model
from workflows.models import build_classifier, fetch_model

NAME = "chest"
INPUT = {"resize": [64, 64], "channels": 1, "mean": [0.5], "std": [0.25]}
_LENGTH = "Inference-Header-Content-Length"


def network(classes: int = 3, *, channels: int = 1, last: nn.Module | None = None) -> nn.Sequential:
    """Convolution, ReLU, pooling and a linear layer with seeded weights; `last` behind it."""
    torch.manual_seed(5)
    head = nn.Linear(6, classes)
    nn.init.normal_(head.weight, std=4.0)
    parts = [nn.Conv2d(channels, 6, 5, stride=2, padding=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head]
    return nn.Sequential(*parts, *([last] if last else [])).eval().requires_grad_(False)


def built(source: str, **keys: Any) -> Classifier:
    """As a worker gets it: through pickle."""
    package = fetch_model(Model(**{"source": source, "input": INPUT, **keys}), folder=None)
    return build_classifier(pickle.loads(pickle.dumps(package)), "cpu")


def answers(classifier: Classifier, images: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = classifier.module(images)
    return found


def some_images(count: int = 5) -> Tensor:
    return torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(1))


def rounding(module: nn.Sequential, images: Tensor) -> Tensor:
    """How far two float32 evaluations of a `network` may lie apart [B,C], whatever batch and instructions they take.

    A sum of n products loses about sqrt(n) u of the sum of their absolute values, u = 2^-24, where errors have random
    signs (Higham and Mary, SIAM J. Sci. Comput. 41, 2019); two lose it each, and a factor of 4 is for unlucky signs.
    Three sums lie behind each other: the convolution, the mean over its cells, the head.
    """
    convolution, head = module[0], module[4]
    n = convolution.weight[0].numel() + 1 + convolution(images[:1])[0, 0].numel() + head.in_features + 1
    absolute = network(head.out_features, channels=images.shape[1])
    for own, given in zip(absolute.parameters(), module.parameters(), strict=True):
        own.data = given.detach().abs()
    return 4 * 2 * n**0.5 * 2**-24 * absolute(images.abs())


def torchscript_of(module: nn.Module) -> bytes:
    """What torch.jit.save writes of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is old; files of it are what is tested
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


def onnx_of(
    module: nn.Sequential,
    *,
    shape: tuple[int | str, ...] = ("n", 1, 64, 64),
    kind: int = TensorProto.FLOAT,
    aside: bool = False,
    external: str | None = None,
) -> bytes:
    """A `network` as an ONNX graph. aside: a second output; external: the first weight lies in a file of that name."""
    convolution, head = module[0], module[4]
    real = helper.tensor_dtype_to_np_dtype(kind)
    named = {"k": convolution.weight, "b": convolution.bias, "w": head.weight, "c": head.bias}
    weights = [numpy_helper.from_array(value.numpy().astype(real), name) for name, value in named.items()]
    nodes = [
        helper.make_node("Conv", ["images", "k", "b"], ["maps"], strides=[2, 2], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("GlobalAveragePool", ["positive"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "c"], ["scores"], transB=1),
    ]
    if len(module) > 5:
        nodes.append(helper.make_node("Softmax", ["scores"], ["shares"], axis=1))
    answer = "shares" if len(module) > 5 else "scores"
    outputs = [helper.make_tensor_value_info(answer, kind, [shape[0], head.out_features])]
    if aside:
        outputs.append(helper.make_tensor_value_info("flat", kind, [shape[0], 6]))
    if external is not None:
        weights[0].ClearField("raw_data")
        weights[0].data_location = TensorProto.EXTERNAL
        weights[0].external_data.add(key="location", value=external)
    inputs = [helper.make_tensor_value_info("images", kind, list(shape))]
    graph = helper.make_graph(nodes, "network", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if external is None:
        onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


@dataclass
class Serving:
    """How a server behaves, and what it was asked. model: what it says of the model; faults: status codes that it
    answers with first; most: images it takes a request; answer: what it sends instead of an answer."""

    module: nn.Module
    model: dict[str, Any] = field(default_factory=dict)
    extensions: list[str] = field(default_factory=list)
    token: str | None = None
    faults: list[int] = field(default_factory=list)
    most: int | None = None
    answer: Any = None
    fails_after: int | None = None  # requests, after which each is answered with 500
    asked: list[tuple[str, str, int]] = field(default_factory=list)  # method, path, images
    answered: list[Tensor] = field(default_factory=list)  # logits of each request that was answered
    url: str = ""

    def metadata(self) -> dict[str, Any]:
        inputs = [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 64, 64]}]
        outputs = [{"name": "scores", "datatype": "FP32", "shape": [-1, 3]}]
        known = {"name": NAME, "versions": ["1"], "platform": "test", "inputs": inputs, "outputs": outputs}
        return known | self.model


@contextmanager
def serving(module: nn.Module, **behaviour: Any) -> Iterator[Serving]:
    """A model behind http://127.0.0.1:PORT/v2/models/chest while it lasts."""
    state = Serving(module, **behaviour)

    class Handler(_Handler):
        serving = state

    with _Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v2/models/{NAME}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_arguments: Any) -> None:
        """A client that went away, or an answer that fails: the client's test says so."""


class _Handler(BaseHTTPRequestHandler):
    serving: Serving

    def log_message(self, *_arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.serving.asked.append(("GET", self.path, 0))
        if self._is_stopped():
            return
        tree = {"name": "server", "version": "0", "extensions": self.serving.extensions}
        self._send(json.dumps(tree if self.path == "/v2" else self.serving.metadata()).encode(), {})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers.get(_LENGTH, len(body)))
        tree = json.loads(body[:length])
        (sent,) = tree["inputs"]
        self.serving.asked.append(("POST", self.path, sent["shape"][0]))
        if self._is_stopped():
            return
        if self.serving.most is not None and sent["shape"][0] > self.serving.most:
            self._send(b'{"error": "too many"}', {}, status=400)
            return
        assert (length < len(body)) == ("binary_tensor_data" in self.serving.extensions)
        data = np.frombuffer(body[length:], "<f4") if length < len(body) else np.array(sent["data"], np.float32)
        logits = self.serving.module(torch.from_numpy(data.reshape(sent["shape"]).copy()))
        self.serving.answered.append(logits)
        answers = logits.numpy()
        if self.serving.answer is not None:
            self._send(self.serving.answer, {})
            return
        output = {"name": "scores", "datatype": "FP32", "shape": list(answers.shape)}
        told = {"model_name": NAME, "model_version": self.serving.metadata().get("answering", "1"), "outputs": [output]}
        if tree.get("parameters", {}).get("binary_data_output"):
            output["parameters"] = {"binary_data_size": answers.nbytes}
            header = json.dumps(told).encode()
            self._send(header + answers.tobytes(), {_LENGTH: str(len(header))})
            return
        output["data"] = answers.ravel().tolist()
        self._send(json.dumps(told).encode(), {})

    def _is_stopped(self) -> bool:
        if self.serving.token is not None and self.headers.get("Authorization") != f"Bearer {self.serving.token}":
            self._send(b"{}", {}, status=401)
        elif self.serving.fails_after is not None and len(self.serving.asked) > self.serving.fails_after:
            self._send(b"{}", {}, status=500)
        elif self.serving.faults:
            self._send(b'{"error": "PatientSecret"}', {"Location": "http://127.0.0.1:1/"}, self.serving.faults.pop(0))
        else:
            return False
        return True

    def _send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def write(folder: Path, name: str, data: bytes) -> str:
    """Write a model's file; returns its path."""
    (folder / name).write_bytes(data)
    return str(folder / name)
