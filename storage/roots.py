"""Where the outermost bytes of an archive lie: a folder of this machine, or an object store.

A root lists files, opens one, and reads one whole. Containers are the business of the rooms above.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore, from_url

from storage.errors import ArchiveError, ImageError
from storage.listing import ArchiveFile, Refused

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from obstore import ObjectMeta

# One request fetches this much of a remote file: more than nearly every header needs.
HEAD_BYTES = 64 << 10
# A remote container is walked in steps of this size.
CONTAINER_BYTES = 1 << 20

# obstore answers with the built-in errors for what the operating system knows too (not found, forbidden).
_StoreError = (BaseError, OSError)
_UNDECODABLE_TO_PRIVATE = {0xDC00 + byte: 0xF700 + byte for byte in range(0x80, 0x100)}
_PRIVATE_TO_UNDECODABLE = {private: lone for lone, private in _UNDECODABLE_TO_PRIVATE.items()}


def storable(name: str) -> str:
    """The name with bytes that are no UTF-8 moved to private-use characters, so that a table can hold it."""
    return name if name.isascii() else name.translate(_UNDECODABLE_TO_PRIVATE)


def on_disk(location: str) -> str:
    """The inverse of :func:`storable`."""
    return location if location.isascii() else location.translate(_PRIVATE_TO_UNDECODABLE)


class Root(Protocol):
    """The outermost layer of an archive."""

    remote: bool

    def list(self) -> Iterator[ArchiveFile | Refused]:
        """Every file below the root. Raises ArchiveError if the root itself cannot be listed."""

    def open(self, location: str, *, block: int = HEAD_BYTES) -> BinaryIO:
        """A seekable stream. Raises ImageError when the file is gone or may not be read."""

    def read(self, location: str, *, limit: int) -> bytes:
        """The whole file. Raises ImageError when it is gone, or longer than ``limit`` bytes."""


@dataclass(frozen=True, slots=True)
class LocalRoot:
    """A folder. ``only`` narrows it to one file."""

    folder: str
    only: str | None = None
    remote: bool = False

    def list(self) -> Iterator[ArchiveFile | Refused]:
        try:
            if self.only is not None:
                status = os.stat(os.path.join(self.folder, self.only))
                yield _found(storable(self.only), status)
                return
            real = os.path.realpath(self.folder, strict=True)
            with os.scandir(self.folder):
                pass
        except OSError as error:
            raise ArchiveError(f"archive.location cannot be listed: {_why(error)}") from None
        yield from _walk(self.folder, "", real)

    def open(self, location: str, *, block: int = HEAD_BYTES) -> BinaryIO:
        try:
            return open(self._path(location), "rb", buffering=block)
        except OSError as error:
            raise _fault(error) from None

    def read(self, location: str, *, limit: int) -> bytes:
        try:
            with open(self._path(location), "rb", buffering=0) as stream:
                size = os.fstat(stream.fileno()).st_size
                if size > limit:
                    raise ImageError(f"the file has {size} bytes, more than the {limit} allowed")
                return stream.read()
        except OSError as error:
            raise _fault(error) from None

    def _path(self, location: str) -> str:
        if ".." in location and ".." in location.split("/"):
            raise ImageError("the name leads out of the archive")
        return os.path.join(self.folder, on_disk(location))


@dataclass(frozen=True, slots=True)
class RemoteRoot:
    """A prefix in an object store. ``only`` narrows it to one object."""

    url: str
    only: str | None = None
    remote: bool = True

    def list(self) -> Iterator[ArchiveFile | Refused]:
        store = _store(self.url)
        try:
            if self.only is not None:
                yield _listed(obstore.head(store, self.only))
                return
            for batch in obstore.list(store):
                yield from map(_listed, batch)
        except _StoreError as error:
            raise ArchiveError(
                f"archive.location cannot be listed by its store ({type(error).__name__}). "
                "Are address and credentials right? A plain web server lists nothing: give it a .zip or .tar."
            ) from None

    def open(self, location: str, *, block: int = HEAD_BYTES) -> BinaryIO:
        store = _store(self.url)
        try:
            size = obstore.head(store, location)["size"]
            stream = io.BufferedReader(_RangedFile(store, location, size), buffer_size=block)
            stream.peek(1)
        except _StoreError as error:
            raise _store_fault(error) from None
        return cast(BinaryIO, stream)

    def read(self, location: str, *, limit: int) -> bytes:
        try:
            result = obstore.get(_store(self.url), location)
            if result.meta["size"] > limit:
                raise ImageError(f"the file has {result.meta['size']} bytes, more than the {limit} allowed")
            return bytes(result.bytes())
        except _StoreError as error:
            raise _store_fault(error) from None


def find_root(location: str, where: str = "archive.location") -> tuple[LocalRoot | RemoteRoot, str | None]:
    """The root of an archive, and the file's name when the location is one file.

    Raises ArchiveError when there is nothing there; ``where`` is the configuration's key to look at.
    """
    if "://" in location and not location.startswith("file://"):
        stripped = location.rstrip("/")
        if stripped.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")):
            return remote_file(stripped)
        return RemoteRoot(location), None
    path = Path(location.removeprefix("file://"))
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ArchiveError(f"{where}: {_why(error)}") from None
    if stat.S_ISDIR(mode):
        return LocalRoot(str(path)), None
    if not stat.S_ISREG(mode):
        raise ArchiveError(f"{where}: expected a folder or a file, got a device or a pipe")
    return LocalRoot(str(path.parent), only=path.name), storable(path.name)


def remote_file(url: str) -> tuple[RemoteRoot, str]:
    """The root that holds one object, and the object's name."""
    prefix, _, name = url.rpartition("/")
    return RemoteRoot(prefix, only=name), name


def _store(url: str) -> ObjectStore:
    try:
        return from_url(url)
    except (*_StoreError, ValueError) as error:
        raise ArchiveError(
            f"no object store opens this address ({type(error).__name__}). Expected s3://, gs://, az:// or https://"
        ) from None


def _walk(folder: str, below: str, root: str) -> Iterator[ArchiveFile | Refused]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield Refused(below or ".", f"the folder cannot be listed: {_why(error)}")
        return
    for entry in ordered:
        location = f"{below}/{storable(entry.name)}" if below else storable(entry.name)
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, location, root)
            else:
                yield _entry(entry, location, root)
        except OSError as error:
            yield Refused(location, _why(error))


def _entry(entry: os.DirEntry[str], location: str, root: str) -> ArchiveFile | Refused:
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if os.path.commonpath([root, target]) != root:
            return Refused(location, "a link that leads out of the archive")
        if os.path.isdir(target):
            return Refused(location, "a link to a folder, which is not followed")
        if not os.path.exists(target):
            return Refused(location, "a link that leads nowhere")
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode):
        return Refused(location, "a device, pipe or socket, not a file")
    return _found(location, status)


def _found(location: str, status: os.stat_result) -> ArchiveFile:
    return ArchiveFile(location, status.st_size, str(status.st_mtime_ns))


def _listed(meta: "ObjectMeta") -> ArchiveFile:
    return ArchiveFile(meta["path"], meta["size"], meta["e_tag"] or meta["last_modified"].isoformat())


# What an outage looks like. It says nothing about the file: a rejection for it would stay after the outage is over.
_OUTAGES = {
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN,
    errno.ENETUNREACH, errno.ECONNREFUSED, errno.ECONNRESET, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
}  # fmt: skip


def _fault(error: OSError) -> ImageError | ArchiveError:
    """The image's fault, or the archive's where the system is in trouble and the image may be fine."""
    if error.errno in _OUTAGES:
        return ArchiveError(f"the archive cannot be read now: {_why(error)}. Audit again when it can.")
    return ImageError(_why(error))


def _store_fault(error: Exception) -> ImageError | ArchiveError:
    if isinstance(error, FileNotFoundError):
        return ImageError(_why(error))
    return ArchiveError(f"the archive cannot be read now: {_store_why(error)}. Audit again when it can.")


def _why(error: OSError) -> str:
    """The reason without the path, which may name a patient."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder (any more)"
    if isinstance(error, PermissionError):
        return "this user may not read it"
    return f"the system cannot read it ({error.strerror or type(error).__name__})"


def _store_why(error: Exception) -> str:
    if isinstance(error, OSError):
        return _why(error)
    return f"the object store did not hand it over ({type(error).__name__})"


class _RangedFile(io.RawIOBase):
    """A remote object as a seekable raw file: each read is one ranged request."""

    def __init__(self, store: ObjectStore, path: str, size: int) -> None:
        super().__init__()
        self._store, self._path, self._size, self._position = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readall(self) -> bytes:
        return self._fetch(self._size - self._position)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        chunk = self._fetch(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    def _fetch(self, length: int) -> bytes:
        length = min(length, self._size - self._position)
        if length <= 0:
            return b""
        try:
            chunk = bytes(obstore.get_range(self._store, self._path, start=self._position, length=length))
        except _StoreError as error:
            raise _store_fault(error) from None
        self._position += len(chunk)
        return chunk
