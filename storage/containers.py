"""Zip and tar files read in place: nothing is ever extracted to disk.

A container is walked: each step yields one member and a way to open it, valid until the next step.
Listing walks everything, reading walks only what is wanted, so both see the same members.
"""

import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from storage.errors import ImageError
from storage.listing import ArchiveCaps
from storage.roots import storable

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Kind = Literal["zip", "tar", "tar.gz"]
SUFFIX = re.compile(r"\.(zip|tar|tar\.gz|tgz)$", re.IGNORECASE)
# How a location steps into a container; a file whose own name looks like this would be taken for one.
STEP = re.compile(r"\.(?:zip|tar|tar\.gz|tgz)!/", re.IGNORECASE)

# Below this size no ratio is absurd: an empty slice of a scan packs a thousandfold.
_RATIO_FLOOR = 1 << 20
# What headers of one tar member may take; long names are held in memory.
_TAR_HEADER_BYTES = 16 << 20
_TAR_BUFFER = 256 << 10
# A zip inside a container has to be held in memory, because its directory is at its end.
_NESTED_ZIP_BYTES = 512 << 20

_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    tarfile.TarError,
)
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a container. ``refusal`` says why it is not opened."""

    name: str
    bytes: int
    stamp: str
    refusal: str | None = None


class Stream:
    """A forward reader whose every trouble is an ImageError with a reason."""

    __slots__ = ("_raw",)

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes, all by default. Raises ImageError."""
        try:
            return self._raw.read(size)
        except ImageError:
            raise
        except _UNREADABLE as error:
            # The library's own words may quote a member's name.
            raise ImageError(f"its bytes cannot be unpacked ({type(error).__name__})") from None

    def close(self) -> None:
        self._raw.close()


Step = tuple[Member, Callable[[], Stream]]


def kind_of(location: str) -> Kind | None:
    """The kind of container a name promises."""
    match = SUFFIX.search(location)
    if match is None:
        return None
    suffix = match[1].lower()
    return "tar.gz" if suffix == "tgz" else cast(Kind, suffix)


def walk(
    stream: BinaryIO | Stream, kind: Kind, caps: ArchiveCaps, *, wanted: Collection[str] | None = None
) -> Iterator[Step]:
    """The members of a container, in the order in which they are cheapest to read.

    ``stream`` is a seekable file, or the Stream of a member of another container. With ``wanted``, only members of
    these names are met. Raises ImageError when the container itself cannot be read on.
    """
    try:
        if kind == "zip":
            yield from _walk_zip(stream, caps, wanted)
        else:
            yield from _walk_tar(stream, kind, caps, wanted)
    except ImageError:
        raise
    except _UNREADABLE as error:
        raise ImageError(f"the {kind} container cannot be read ({type(error).__name__})") from None


def _walk_zip(stream: BinaryIO | Stream, caps: ArchiveCaps, wanted: Collection[str] | None) -> Iterator[Step]:
    if isinstance(stream, Stream):
        stream = _in_memory(stream)
    with zipfile.ZipFile(stream) as container:
        entries = container.infolist()
        if len(entries) > caps.members:
            raise ImageError(f"the container holds more than {caps.members} files")
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if entry.filename.endswith("/"):  # is_dir() stumbles over an empty name
                continue
            member = _zip_member(entry, caps)
            if wanted is None or member.name in wanted:
                yield member, lambda entry=entry: _open_zip_entry(container, entry)  # type: ignore[misc]


def _open_zip_entry(container: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Stream:
    try:
        return Stream(cast(BinaryIO, container.open(entry)))
    except _UNREADABLE as error:
        raise ImageError(f"the container's entry for it is damaged ({type(error).__name__})") from None


def _in_memory(stream: Stream) -> BinaryIO:
    payload = stream.read(_NESTED_ZIP_BYTES + 1)
    if len(payload) > _NESTED_ZIP_BYTES:
        raise ImageError(f"a zip inside a container may have {_NESTED_ZIP_BYTES} bytes at most; unpack this one")
    return io.BytesIO(payload)


def _zip_member(entry: zipfile.ZipInfo, caps: ArchiveCaps) -> Member:
    raw = entry.filename if "/" in entry.filename else entry.filename.replace("\\", "/")
    refusal = _unsafe(entry.orig_filename) or _too_big(entry.file_size, caps)
    if entry.flag_bits & 0x1:
        refusal = "it is encrypted"
    elif stat.S_ISLNK(entry.external_attr >> 16):
        refusal = "a link inside a container, which is not followed"
    elif entry.compress_type not in _PACKINGS:
        refusal = "it is packed by a method that is not supported"
    elif entry.file_size > _RATIO_FLOOR and entry.file_size > caps.ratio * entry.compress_size:
        refusal = _absurd(caps)
    return Member(_normal(raw), entry.file_size, f"{entry.CRC:08x}", refusal)


def _walk_tar(
    stream: BinaryIO | Stream, kind: Kind, caps: ArchiveCaps, wanted: Collection[str] | None
) -> Iterator[Step]:
    packed = _Metered(stream)
    if kind == "tar.gz":
        inner = gzip.GzipFile(fileobj=cast(BinaryIO, packed), mode="rb")
        metered = _Metered(cast(BinaryIO, inner), packed=packed, ratio=caps.ratio)
    else:
        metered = packed
    # Only an unpacked tar on its own can skip over members without reading them.
    mode: Literal["r:", "r|"] = "r:" if metered.seekable() else "r|"
    metered.allow(_TAR_HEADER_BYTES)
    missing = None if wanted is None else set(wanted)
    with tarfile.open(fileobj=cast(BinaryIO, metered), mode=mode, bufsize=_TAR_BUFFER) as container:
        count = 0
        while missing is None or missing:
            entry = container.next()
            if entry is None:
                return
            container.members.clear()  # type: ignore[attr-defined]  # it remembers every member; a long walk must not
            metered.allow(entry.size + _TAR_HEADER_BYTES)
            if entry.isdir():
                continue
            count += 1
            if count > caps.members:
                raise ImageError(f"the container holds more than {caps.members} files")
            member = _tar_member(entry, caps)
            if missing is None or member.name in missing:
                if missing is not None:
                    missing.discard(member.name)
                yield member, lambda entry=entry: _open_tar_entry(container, entry)  # type: ignore[misc]


def _open_tar_entry(container: tarfile.TarFile, entry: tarfile.TarInfo) -> Stream:
    raw = container.extractfile(entry)
    if raw is None:
        raise ImageError("the container's entry for it has no bytes")
    return Stream(cast(BinaryIO, raw))


def _tar_member(entry: tarfile.TarInfo, caps: ArchiveCaps) -> Member:
    refusal = _unsafe(entry.name) or _too_big(entry.size, caps)
    if entry.issym() or entry.islnk():
        refusal = "a link inside a container, which is not followed"
    elif not entry.isreg():
        refusal = "a device or pipe inside a container"
    return Member(_normal(storable(entry.name)), entry.size, str(entry.mtime), refusal)


def _normal(name: str) -> str:
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "(no name)"


def _unsafe(name: str) -> str | None:
    parts = re.split(r"[/\\]", name)
    if ".." in parts or parts[0] == "" or parts[0].endswith(":") or "\0" in name or STEP.search(name):
        return "its name leads out of the container"
    return None


def _too_big(size: int, caps: ArchiveCaps) -> str | None:
    return f"the file has {size} bytes, more than the {caps.file_bytes} allowed" if size > caps.file_bytes else None


def _absurd(caps: ArchiveCaps) -> str:
    return f"it unpacks to more than {caps.ratio:g} times its size, like a bomb; archive.caps.ratio allows more"


class _Metered(io.RawIOBase):
    """Counts what passes, so that a bomb is stopped while it unpacks and a header cannot eat the memory."""

    def __init__(self, inner: BinaryIO | Stream, *, packed: "_Metered | None" = None, ratio: float = 0.0) -> None:
        super().__init__()
        self._inner, self._packed, self._ratio = inner, packed, ratio
        self.count = 0
        self._allowed: int | None = None

    def allow(self, size: int) -> None:
        """Let this many more bytes pass from here, and what tarfile reads ahead."""
        self._allowed = self.count + size + 2 * _TAR_BUFFER

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._packed is None and not isinstance(self._inner, Stream)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if isinstance(self._inner, Stream):
            raise io.UnsupportedOperation("seek")
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self.count if isinstance(self._inner, Stream) else self._inner.tell()

    def read(self, size: int = -1) -> bytes:
        # Asked before the bytes are: the memory for them would be taken at once.
        if self._allowed is not None and self.count + max(0, size) > self._allowed:
            raise ImageError("the tar container has a header of absurd size")
        chunk = self._inner.read(size)
        self.count += len(chunk)
        if self._packed is not None and self.count > max(_RATIO_FLOOR, self._ratio * self._packed.count):
            raise ImageError(
                f"the container unpacks to more than {self._ratio:g} times its size, like a bomb; "
                "archive.caps.ratio allows more"
            )
        return chunk

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        chunk = self.read(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)
