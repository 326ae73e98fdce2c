"""Files that the configuration names: read whole, from a disk, an object store or the web."""

import urllib.request
from http.client import HTTPException
from urllib.error import HTTPError, URLError

from storage.errors import ArchiveError, ConfigurationError, ImageError
from storage.roots import find_root, remote_file

# A web server that says nothing for so long is taken for dead.
_SILENCE_S = 60
_BLOCK_BYTES = 1 << 20


def read_document(location: str, where: str, *, limit: int = 1 << 30) -> bytes:
    """A file that the configuration names under the key ``where``, from disk, an object store or the web.

    Raises ConfigurationError when it is not there or cannot be read. The message does not repeat an address, whose
    query may be a password.
    """
    if location.startswith(("http://", "https://")):
        return _download(location, where, limit)
    try:
        root, name = find_root(location, where) if "://" not in location else remote_file(location)
        if name is None:
            raise ConfigurationError(f"{where}: expected a file, got a folder")
        return root.read(name, limit=limit)
    except ArchiveError as error:
        raise ConfigurationError(str(error)) from None
    except ImageError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _download(url: str, where: str, limit: int) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_SILENCE_S) as answer:
            announced = answer.headers["Content-Length"]
            data = bytearray()
            while len(data) <= limit and (block := answer.read(_BLOCK_BYTES)):
                data += block
    except HTTPError as error:
        error.close()  # it is the answer, too
        raise ConfigurationError(f"{where}: cannot be fetched: the server answers {error.code}") from None
    except (OSError, HTTPException, ValueError) as error:
        why = error.reason if isinstance(error, URLError) else type(error).__name__
        raise ConfigurationError(f"{where}: cannot be fetched: {why}") from None
    if announced is not None and len(data) < min(int(announced), limit):  # http.client does not tell
        raise ConfigurationError(f"{where}: cannot be fetched: the server sent {len(data)} of {announced} bytes")
    if len(data) > limit:
        raise ConfigurationError(f"{where}: the file has more than the {limit} bytes allowed")
    return bytes(data)
