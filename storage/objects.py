"""A folder of objects, on a disk or behind an object-store URL: the one way a run is read and written."""

import io
from pathlib import Path
from typing import Any, Self

import obstore
from obstore.exceptions import AlreadyExistsError
from obstore.store import LocalStore, from_url
from zarr.storage import ObjectStore

from storage.errors import RunError


class Objects:
    """Keys below `location`. Local and S3-like stores behave alike: puts are atomic, absence is FileNotFoundError.

    Picklable: only the location travels, each process opens its own client. On a disk the folder is created. Raises
    RunError when it cannot be opened.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/") or "/"
        self._store = _open(self.location)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.location,)

    def get(self, key: str) -> bytes:
        """The object's bytes; raises FileNotFoundError."""
        return bytes(obstore.get(self._store, key).bytes())

    def put(self, key: str, data: bytes) -> None:
        """Write the whole object at once: a reader sees the old bytes or the new, never a part."""
        obstore.put(self._store, key, data)

    def put_file(self, key: str, path: Path) -> None:
        """Write an object from a file on this disk, in parts where the store wants parts."""
        obstore.put(self._store, key, path)

    def reader(self, key: str) -> io.BufferedReader:
        """A seekable reader that fetches only what is read; raises FileNotFoundError."""
        return io.BufferedReader(_Reader(obstore.open_reader(self._store, key)), 1 << 20)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """True if this call created the object, False if someone had done so before."""
        try:
            obstore.put(self._store, key, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def exists(self, key: str) -> bool:
        try:
            obstore.head(self._store, key)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        """Keys below a folder, sorted."""
        return sorted(str(meta["path"]) for batch in obstore.list(self._store, prefix or None) for meta in batch)

    def delete(self, prefix: str) -> None:
        """Delete the object of this key and everything below it."""
        keys = self.list(prefix)
        if self.exists(prefix):
            keys.append(prefix)
        if keys:
            obstore.delete(self._store, keys)

    def sweep(self, folder: str) -> None:
        """Delete what processes that died in the middle of a put left below a folder that nobody writes to now, and
        on a disk the folders that deleted objects lay in.

        A local put goes through a file `KEY#NUMBER` beside the key, which no listing shows.
        """
        if "://" in self.location:
            return
        root = Path(self.location) / folder
        for path in root.rglob("*#*"):
            if path.is_file() and path.name.rpartition("#")[2].isdigit():
                path.unlink()
        for path in sorted([root, *root.rglob("*")], reverse=True):  # the deepest first
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def zarr(self, key: str, *, read_only: bool = False) -> ObjectStore[Any]:
        """The folder `key` as a Zarr store."""
        return ObjectStore(_open(f"{self.location}/{key}"), read_only=read_only)

    def path(self, key: str) -> str:
        """Where people find the object: a path on this disk, or a URL."""
        return f"{self.location}/{key}"


class _Reader(io.RawIOBase):
    """obstore's reader as Python's own, which is what pyarrow asks for."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        data = self._reader.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _open(location: str) -> Any:
    try:
        if "://" in location:
            return from_url(location)
        return LocalStore(Path(location).absolute(), mkdir=True)
    except Exception as error:  # obstore raises a class of its own for each scheme; all mean the same here
        raise RunError(f"{location}: cannot be opened as a folder or object store: {error}") from error
