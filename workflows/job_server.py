"""The dashboard of a Ray cluster, which takes jobs: whether it is safe to talk to, and the token it asks for."""

import ipaddress
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from storage.errors import ConfigurationError, LucencyError

_TIMEOUT = 10.0  # seconds
_DIVERTING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True, slots=True)
class JobServer:
    """A dashboard that answered."""

    url: str
    loopback: bool
    asks_for_token: bool
    ray_version: str | None  # None: it asks for a token and ours is missing or wrong


def reach(address: str) -> JobServer:
    """Ask the server, without our token, whether it lets anybody in; then, with it, for its version.

    Raises ConfigurationError for an address that is no URL, LucencyError when nothing answers.
    """
    url, loopback = _parsed(address)
    status, body = _get(url, token=None)
    if status == 200:
        return JobServer(url, loopback, asks_for_token=False, ray_version=_version(url, body))
    if status not in (401, 403):
        raise LucencyError(f"{url} answered with HTTP {status}; expected the dashboard of a Ray cluster.")
    token = find_token()
    status, body = (status, b"") if token is None else _get(url, token)
    return JobServer(url, loopback, asks_for_token=True, ray_version=_version(url, body) if status == 200 else None)


def refuse_unsafe(server: JobServer) -> None:
    """Raise LucencyError unless this server can be given code to run, and will take it from us."""
    for name in _DIVERTING:
        if os.environ.get(name, server.url).rstrip("/") != server.url:
            raise ConfigurationError(f"{name} is set, and Ray would send the job there and not to --address. Unset it.")
    if not server.asks_for_token and not server.loopback:
        raise LucencyError(
            f"{server.url} lets anybody in who can reach it: whoever does can read the archive. Start the cluster "
            "with RAY_AUTH_MODE=token, or reach it through a tunnel that ends on this machine (ssh -L 8265:...)."
        )
    if server.asks_for_token and server.ray_version is None:
        raise LucencyError(
            f"{server.url} asks for a token and does not take ours. Set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a "
            "file that holds it."
        )


def find_token() -> str | None:
    """The token where Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None


def _parsed(address: str) -> tuple[str, bool]:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"--address {address}: expected the dashboard's URL, such as http://127.0.0.1:8265.")
    if parts.username or parts.password:
        raise ConfigurationError("--address holds a password: it would be seen by everyone on this machine.")
    try:
        loopback = ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        loopback = parts.hostname == "localhost"
    return address.rstrip("/"), loopback


def _get(url: str, token: str | None) -> tuple[int, bytes]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"{url}/api/version", headers=headers), timeout=_TIMEOUT
        ) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""
    except OSError as error:
        raise LucencyError(
            f"nothing answers at {url}: {error}. Is the cluster up, and its port 8265 forwarded?"
        ) from error


def _version(url: str, body: bytes) -> str:
    try:
        return str(json.loads(body)["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise LucencyError(f"{url} answers, but not as the dashboard of a Ray cluster does.") from error
