"""Models behind an address that speaks the Open Inference Protocol (KServe's version 2): how to reach them.

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
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from storage.errors import ConfigurationError, LucencyError, ModelError
from workflows import configuration

_PATH = re.compile(r"(?P<root>.*)/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?")
_BINARY = "binary_tensor_data"  # what a server calls the extension that sends tensors as bytes
REALS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}  # as the protocol calls them, and numpy
_CONNECT_SECONDS = 10.0
_BACKOFF = 0.5  # seconds, doubled with each retry
_LONGEST_WAIT = 60  # seconds, whatever the server asks for
_BUSY = (429, 502, 503, 504)
_LONGEST_NAME = 80  # of what a server calls its platform


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
    try:
        address = urlsplit(model.source)
    except ValueError:  # brackets that do not close
        address = urlsplit("")
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
    with open_session(address.scheme, token, retries=0) as session:
        told = _metadata(session, url, "the model")
        server = _metadata(session, f"{address.scheme}://{address.netloc}{root}", "the server")
    sent = _tensor(told, "inputs", None)
    return Endpoint(
        url=url,
        name=found["name"],
        version=_version(found["version"], told),
        platform=str(told.get("platform") or "not told")[:_LONGEST_NAME],
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
    response = send(session, "GET", url, timeout=_CONNECT_SECONDS)
    if response.status_code != 200:
        raise ModelError(f"model.source: the server does not say what {what} is ({meaning_of(response.status_code)}).")
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
    kinds = ("FP32",) if key == "inputs" else tuple(REALS)
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


def open_session(scheme: str, token: str | None, *, retries: int) -> requests.Session:
    """A connection that is kept, and tried again where it breaks or the server is busy."""
    session = requests.Session()
    # A proxy of the environment would see what plain HTTP carries; through https it sees nothing.
    session.trust_env = scheme == "https"
    session.auth = None if token is None else _Bearer(token)
    patience = Retry(
        total=retries,
        read=1,  # an answer that does not come may be one that never will
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


def send(session: requests.Session, method: str, url: str, *, timeout: float, **content: Any) -> requests.Response:
    """Raises LucencyError where no server answers, or none that can: no fault of model or image."""
    try:
        response = session.request(method, url, timeout=(_CONNECT_SECONDS, timeout), allow_redirects=False, **content)
    except requests.RequestException as error:  # its text holds addresses
        raise _dead(type(error).__name__) from error
    if response.status_code >= 500 or response.status_code == 429:
        raise _dead(meaning_of(response.status_code))
    return response


def _dead(why: str) -> LucencyError:
    return LucencyError(
        f"the server of model.source does not answer ({why}). Is it up, and can every worker reach it? Is "
        "model.server.timeout long enough? What is done is kept: run the audit again to go on."
    )


def meaning_of(status: int) -> str:
    """An HTTP status in words, with what to do."""
    if 300 <= status < 400:
        return f"HTTP {status}: it redirects; give the address that it redirects to"
    if status in (401, 403):
        return f"HTTP {status}: it wants another token, or one at all; see model.server.token_env"
    return f"HTTP {status}: is the name and the version right?" if status == 404 else f"HTTP {status}"
