"""Asking a served model: images in, answers out, in requests as large as its server takes."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
import torch
from torch import Tensor

from storage.errors import ModelError
from workflows.open_inference import REALS, Endpoint, meaning_of, open_session, send

_HEADER_BYTES = "Inference-Header-Content-Length"
_RETRIES = 6  # half a minute in all, where each fails at once
_TOO_MUCH = (400, 413, 422)  # of more than one image: perhaps too many of them


class Served:
    """A served model. A server that takes fewer images a request than a batch has gets them in smaller requests."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.shape = endpoint.shape
        self.digest = endpoint.digest
        self.runtime = endpoint.runtime
        self._endpoint = endpoint
        self._session = open_session(urlsplit(endpoint.url).scheme, endpoint.token, retries=_RETRIES)
        self._most: int | None = None  # images a request, where the server is known to take no more

    def __call__(self, images: Tensor) -> Tensor:
        answers: list[Tensor] = []
        rest = images.detach().cpu().contiguous().numpy()
        while len(rest):
            some = rest[: self._most]
            answer = self._ask(some)
            if answer is None:
                self._most = len(some) // 2
                continue
            answers.append(answer)
            rest = rest[len(some) :]
        return torch.cat(answers)

    def _ask(self, images: np.ndarray[Any, Any]) -> Tensor | None:
        """The answers to some images, None where they are too many for one request."""
        headers, body = _request(self._endpoint, images)
        url = f"{self._endpoint.url}/infer"
        response = send(self._session, "POST", url, timeout=self._endpoint.timeout, data=body, headers=headers)
        if response.status_code in _TOO_MUCH and len(images) > 1:
            return None
        if response.status_code in _TOO_MUCH:
            raise ModelError(
                f"model.source: the server refuses a request of one image of {list(images.shape[1:])} (HTTP "
                f"{response.status_code}). Is model.input what the model was trained on? Does the server limit how "
                "large a request may be?"
            )
        if response.status_code != 200:
            raise ModelError(f"model.source: the served model gives no answer ({meaning_of(response.status_code)}).")
        return _answer(response, self._endpoint, len(images))


def _request(endpoint: Endpoint, images: np.ndarray[Any, Any]) -> tuple[dict[str, str], bytes]:
    """Headers and body that ask about float32 images [n,channels,*size]."""
    sent: dict[str, Any] = {"name": endpoint.input, "shape": list(images.shape), "datatype": "FP32"}
    tree: dict[str, Any] = {"inputs": [sent]}
    if endpoint.output is not None:
        tree["outputs"] = [{"name": endpoint.output}]
    if not endpoint.binary:
        sent["data"] = images.ravel().tolist()
        return {"Content-Type": "application/json"}, json.dumps(tree).encode()
    data = images.astype("<f4", copy=False).tobytes()
    sent["parameters"] = {"binary_data_size": len(data)}
    tree["parameters"] = {"binary_data_output": True}
    header = json.dumps(tree).encode()
    return {"Content-Type": "application/octet-stream", _HEADER_BYTES: str(len(header))}, header + data


def _answer(response: requests.Response, endpoint: Endpoint, images: int) -> Tensor:
    """The answers [images,C] of a response. Raises ModelError, which quotes none of it."""
    try:
        length = int(response.headers.get(_HEADER_BYTES, len(response.content)))
        told = json.loads(response.content[:length])
        outputs = [item for item in told["outputs"] if endpoint.output in (None, item["name"])]
        if len(outputs) != 1:
            raise ModelError(
                f"model.source: the server answers with {len(told['outputs'])} outputs; expected one. "
                "Choose one in model.output_name."
            )
        version = told.get("model_version")
        shape, values = outputs[0]["shape"], _values(told["outputs"], outputs[0], response.content[length:])
        if len(shape) != 2 or shape[0] != images or len(values) != prod(shape):
            raise ModelError(f"model.source: the served model answers {images} image(s) with {shape}; expected logits.")
        answer = torch.from_numpy(values.reshape(shape).astype(np.float32))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"model.source: the server's answer is none of the Open Inference Protocol ({type(error).__name__})."
        ) from None
    if version and endpoint.version and str(version) != endpoint.version:
        raise ModelError(
            f"model.source: the server began to answer with version {version} of the model, and the audit is of "
            f"version {endpoint.version}. Say which in the address: .../versions/{endpoint.version}"
        )
    return answer


def _values(outputs: Sequence[Any], wanted: Mapping[str, Any], binary: bytes) -> np.ndarray[Any, Any]:
    """The numbers of one output, flat. Binary ones lie one behind the other, in the order of the outputs."""
    if "data" in wanted:
        return np.asarray(wanted["data"], np.float64).ravel()
    start = 0
    for output in outputs:
        size = output["parameters"]["binary_data_size"]
        if output is wanted:
            return np.frombuffer(binary[start : start + size], REALS[wanted["datatype"]])
        start += size
    raise ValueError
