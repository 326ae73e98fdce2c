"""Models behind an address that speaks the Open Inference Protocol (KServe's version 2) over HTTP, in JSON or binary.

Pixels leave this machine. So nothing is sent in clear to another machine unless told, no redirect is followed, and no
error says what was sent or answered.
"""

import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
import torch
from requests.adapters import HTTPAdapter
from torch import Tensor
from urllib3.util import Retry

from storage.errors import ConfigurationError, LucencyError, ModelError
from workflows import configuration

_PATH = re.compile(r"(?P<root>.*)/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?")
_BINARY = "binary_tensor_data"  # what a server calls the extension that sends tensors as bytes
_HEADER_BYTES = "Inference-Header-Content-Length"
_REALS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
_CONNECT_SECONDS = 10.0
_RETRIES = 6
_BACKOFF = 0.5  # seconds, doubled each time: half a minute in all
_LONGEST_WAIT = 60  # seconds, whatever the server asks for
_BUSY = (429, 502, 503, 504)
_TOO_MUCH = (400, 413, 422)  # of more than one image: perhaps too many of them


@dataclass(frozen=True, slots=True)
class Endpoint:
    """All that it takes to ask a served model. Picklable.

    shape: of the input, batch first, None for sides of any length; None where the server does not say. version: None
    where the server has none. binary: tensors may travel as bytes.
    """

    url: str
    name: str
    version: str | None
    platform: str
    input: str
    shape: tuple[int | None, ...] | None
    output: str | None
    binary: bool
    timeout: float
    token: str | None = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 of what the server says the model is."""
        known = [self.name, self.version, self.platform, self.input, self.shape, self.output]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    @property
    def runtime(self) -> str:
        version = "no version told" if self.version is None else f"version {self.version}"
        return f"served: {self.name}, {version}, platform {self.platform}"


def find_endpoint(model: configuration.Model) -> Endpoint:
    """Ask the server what `model.source` is. Raises ConfigurationError, ModelError, LucencyError if it is silent."""
    address = urlsplit(model.source)
    found = _PATH.fullmatch(address.path.rstrip("/"))
    if found is None or not address.hostname or address.username or address.password or address.query:
        raise ConfigurationError(
            "model.source: expected http(s)://HOST[:PORT]/v2/models/NAME[/versions/VERSION], without user, password "
            "or query. A token goes into an environment variable that model.server.token_env names."
        )
    if address.scheme == "http" and not _is_this_machine(address.hostname) and not model.server.plaintext:
        raise ConfigurationError(
            "model.source: http:// would send images of patients unencrypted to another machine. Use https://, or a "
            "tunnel to localhost; if the network between is as good as one machine, set `model.server.plaintext: true`."
        )
    token = _token(model.server.token_env)
    url, root = f"{address.scheme}://{address.netloc}{address.path.rstrip('/')}", f"{found['root']}/v2"
    with _session(address.scheme, token, retries=0) as session:
        told = _metadata(session, url, "the model")
        server = _metadata(session, f"{address.scheme}://{address.netloc}{root}", "the server")
    sent = _tensor(told, "inputs", None)
    return Endpoint(
        url=url,
        name=found["name"],
        version=_version(found["version"], told),
        platform=str(told.get("platform", "not told")),
        input=sent["name"] if sent else "input-0",
        shape=_shape(sent) if sent else None,
        output=(_tensor(told, "outputs", model.output_name) or {"name": model.output_name})["name"],
        binary=_BINARY in _list(server, "extensions"),
        timeout=model.server.timeout,
        token=token,
    )


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigurationError(f"model.server.token_env: the environment variable {variable} is not set.")
    return token


def _metadata(session: requests.Session, url: str, what: str) -> Mapping[str, Any]:
    response = _sent(session, "GET", url, timeout=_CONNECT_SECONDS)
    if response.status_code != 200:
        raise ModelError(f"model.source: the server does not say what {what} is ({_meaning(response.status_code)}).")
    try:
        told = json.loads(response.content)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ModelError(f"model.source: what the server says of {what} is no answer of the Open Inference Protocol.")
    return told


def _list(told: Mapping[str, Any], key: str) -> Sequence[Any]:
    values = told.get(key)
    return values if isinstance(values, list) else ()


def _tensor(told: Mapping[str, Any], key: str, name: str | None) -> Mapping[str, Any] | None:
    """The one tensor of real numbers among a model's inputs or outputs, or the one of that name; None: none is told."""
    tensors = [item for item in _list(told, key) if isinstance(item, dict) and isinstance(item.get("name"), str)]
    if not tensors:
        return None
    chosen = [item for item in tensors if name in (None, item["name"])]
    what = key.removesuffix("s")
    if len(chosen) != 1:
        names = ", ".join(repr(item["name"]) for item in tensors)
        advice = " Choose one in model.output_name." if key == "outputs" else ""
        raise ModelError(
            f"model.source: expected one {what}{f' {name!r}' if name else ''}; the served model has {names}.{advice}"
        )
    kinds = ("FP32",) if key == "inputs" else tuple(_REALS)
    if chosen[0].get("datatype", "FP32") not in kinds:
        raise ModelError(
            f"model.source: {what} {chosen[0]['name']!r} is of type {chosen[0]['datatype']}; "
            f"expected {', '.join(kinds)}."
        )
    return chosen[0]


def _shape(tensor: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    sides = _list(tensor, "shape")
    if not sides or not all(isinstance(side, int) for side in sides):
        return None
    return tuple(side if side >= 0 else None for side in sides)


def _version(asked: str | None, told: Mapping[str, Any]) -> str | None:
    """The version that is asked: named in the address, or the only one there is."""
    versions = [str(version) for version in _list(told, "versions")]
    if asked is None and len(versions) > 1:
        raise ModelError(
            f"model.source: the server has versions {', '.join(versions)} of the model and may change between them. "
            f"Say which: .../versions/{versions[-1]}"
        )
    return asked or (versions[0] if versions else None)


class Served:
    """A served model. A server that takes fewer images a request than a batch has gets them in smaller requests."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.shape = endpoint.shape
        self.digest = endpoint.digest
        self.runtime = endpoint.runtime
        self._endpoint = endpoint
        self._session = _session(urlsplit(endpoint.url).scheme, endpoint.token, retries=_RETRIES)
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
        response = _sent(self._session, "POST", url, timeout=self._endpoint.timeout, data=body, headers=headers)
        if response.status_code in _TOO_MUCH and len(images) > 1:
            return None
        if response.status_code in _TOO_MUCH:
            raise ModelError(
                f"model.source: the server refuses a request of one image of {list(images.shape[1:])} (HTTP "
                f"{response.status_code}). Is model.input what the model was trained on? Does the server limit how "
                "large a request may be?"
            )
        if response.status_code != 200:
            raise ModelError(f"model.source: the served model gives no answer ({_meaning(response.status_code)}).")
        return _answer(response, self._endpoint, len(images))


def _session(scheme: str, token: str | None, *, retries: int) -> requests.Session:
    session = requests.Session()
    # A proxy of the environment would see what plain HTTP carries; through https it sees nothing.
    session.trust_env = scheme == "https"
    session.auth = None if token is None else _Bearer(token)
    patience = Retry(
        total=retries,
        backoff_factor=_BACKOFF,
        status_forcelist=_BUSY,
        allowed_methods=None,  # to ask a model twice changes nothing
        raise_on_status=False,
        retry_after_max=_LONGEST_WAIT,
    )
    for prefix in ("http://", "https://"):
        session.mount(prefix, HTTPAdapter(max_retries=patience))
    return session


class _Bearer(requests.auth.AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _sent(session: requests.Session, method: str, url: str, *, timeout: float, **content: Any) -> requests.Response:
    """Raises LucencyError where no server answers, or none that can: no fault of model or image."""
    try:
        response = session.request(method, url, timeout=(_CONNECT_SECONDS, timeout), allow_redirects=False, **content)
    except requests.RequestException as error:  # its text holds addresses
        raise _dead(type(error).__name__) from error
    if response.status_code >= 500 or response.status_code == 429:
        raise _dead(_meaning(response.status_code))
    return response


def _dead(why: str) -> LucencyError:
    return LucencyError(
        f"the server of model.source does not answer ({why}). Is it up, and can every worker reach it? Is "
        "model.server.timeout long enough? What is done is kept: run the audit again to go on."
    )


def _meaning(status: int) -> str:
    if 300 <= status < 400:
        return f"HTTP {status}: it redirects; give the address that it redirects to"
    if status in (401, 403):
        return f"HTTP {status}: it wants another token, or one at all; see model.server.token_env"
    return f"HTTP {status}: is the name and the version right?" if status == 404 else f"HTTP {status}"


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
            return np.frombuffer(binary[start : start + size], _REALS[wanted["datatype"]])
        start += size
    raise ValueError
