"""What an archive is found to hold, and what it may cost to find out."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ArchiveCaps:
    """Bounds on what is opened. The configuration's ``archive.caps`` says what each one means."""

    members: int = 10_000_000
    file_bytes: int = 4 << 30
    ratio: float = 200.0
    nesting: int = 2
    pixels: int = 100_000_000
    voxels: int = 1 << 30
    frames: int = 100_000


DEFAULT_CAPS = ArchiveCaps()


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """One file of the archive, not yet opened.

    ``location`` is the path below the root with ``/`` separators, ``!/`` steps into a container.
    ``stamp`` changes when the file does: an entity tag, a checksum, or the time of its last change.
    """

    location: str
    bytes: int
    stamp: str


@dataclass(frozen=True, slots=True)
class Refused:
    """One entry of the archive that is not opened at all, with a reason a person understands."""

    location: str
    reason: str
