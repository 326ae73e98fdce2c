"""An archive of files: a folder, a container or an object store, with containers opened in place."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import BinaryIO, Self, TypeVar

import pathspec

from storage.containers import STEP, Kind, Stream, kind_of, walk
from storage.errors import ArchiveError, ImageError
from storage.listing import DEFAULT_CAPS, ArchiveCaps, ArchiveFile, Refused
from storage.roots import CONTAINER_BYTES, LocalRoot, RemoteRoot, find_root

__all__ = ["Archive", "ArchiveCaps", "ArchiveFile", "Refused", "Stream"]

# Requests to an object store in flight at once: latency, not bandwidth, is what small files cost.
_REQUESTS = 16

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Archive:
    """Opened once, sent anywhere: it holds no handle and pickles to a few hundred bytes."""

    root: LocalRoot | RemoteRoot
    container: str | None  # the root is this one file
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    caps: ArchiveCaps

    @classmethod
    def open(
        cls,
        location: str,
        *,
        include: Sequence[str] = ("**",),
        exclude: Sequence[str] = (),
        caps: ArchiveCaps = DEFAULT_CAPS,
    ) -> Self:
        """A folder, a .zip, .tar or .tar.gz, or an object-store URL of any of these.

        ``include`` and ``exclude`` are globs on the path below the root, as in a .gitignore file. Raises ArchiveError
        when nothing is there, or when it is neither folder nor container.
        """
        root, name = find_root(location)
        if name is not None and kind_of(name) is None:
            raise ArchiveError("archive.location: expected a folder, .zip, .tar or .tar.gz, got another kind of file")
        return cls(root, name, tuple(include), tuple(exclude), caps)

    def outer_files(self) -> Iterator[ArchiveFile | Refused]:
        """What the root itself lists, containers unopened: cheap, and enough to see whether anything changed."""
        excluded = self._excluded()
        for found in self.root.list():
            if self.container is not None or not excluded(found.location):
                yield found

    def files(self, outer: Iterable[ArchiveFile | Refused] | None = None) -> Iterator[ArchiveFile | Refused]:
        """Every file of the archive, members of containers in place of the containers.

        ``outer`` is what :meth:`outer_files` gave, where that is known already. Raises ArchiveError when the root
        cannot be listed; everything smaller is a Refused.
        """
        chosen = self._chosen()
        for found in self.outer_files() if outer is None else outer:
            kind = kind_of(found.location)
            if STEP.search(found.location):
                yield Refused(found.location, "its folder has a name that means a container")
            elif isinstance(found, Refused) or kind is None:
                if chosen(found.location):
                    yield found
            else:
                yield from self._members_of(found, kind, chosen)

    def read(self, locations: Iterable[str]) -> Iterator[tuple[str, bytes | ImageError]]:
        """Whole files, each distinct location once, in the order in which they are cheapest to read.

        A container is opened once for all of its members. What cannot be read comes as an ImageError with the reason.
        """
        plain, inside = self._sorted_out(locations)

        def whole(location: str) -> tuple[str, bytes | ImageError]:
            try:
                return location, self.root.read(location, limit=self.caps.file_bytes)
            except ImageError as error:
                return location, error

        yield from _ahead(whole, plain) if self.root.remote else map(whole, plain)
        for location, stream in self._streams_inside(inside):
            yield location, _whole(stream)

    def streams(self, locations: Iterable[str]) -> Iterator[tuple[str, Stream | ImageError]]:
        """Like :meth:`read`, as forward streams for whoever wants the first bytes only.

        Each stream is valid until the next step.
        """
        plain, inside = self._sorted_out(locations)

        def opened(location: str) -> tuple[str, BinaryIO | ImageError]:
            try:
                return location, self.root.open(location)
            except ImageError as error:
                return location, error

        for location, raw in _ahead(opened, plain) if self.root.remote else map(opened, plain):
            if isinstance(raw, ImageError):
                yield location, raw
            else:
                with raw:
                    yield location, Stream(raw)
        yield from self._streams_inside(inside)

    def scan_of(self, location: str) -> str | None:
        """The container that has to be unpacked from its start to reach this file, or None.

        Files that share one are cheapest read by one worker, in one go.
        """
        steps = self._steps(location)
        streamed = len(steps) > 2 or kind_of(steps[0]) == "tar.gz"
        return steps[0] if len(steps) > 1 and streamed else None

    def _members_of(
        self, found: ArchiveFile, kind: Kind, chosen: Callable[[str], bool]
    ) -> Iterator[ArchiveFile | Refused]:
        prefix = "" if self.container is not None else f"{found.location}!/"
        try:
            with self.root.open(found.location, block=CONTAINER_BYTES) as stream:
                members = self._listed(stream, kind, prefix, 0)
        except ImageError as error:
            yield Refused(found.location, str(error))
            return
        yield from (member for member in members if chosen(member.location))

    def _listed(self, stream: BinaryIO | Stream, kind: Kind, prefix: str, depth: int) -> list[ArchiveFile | Refused]:
        found: list[ArchiveFile | Refused] = []
        seen: set[str] = set()
        doubled: set[str] = set()
        try:
            for member, opener in walk(stream, kind, self.caps):
                location = prefix + member.name
                if location in seen:
                    doubled.add(location)
                    continue
                seen.add(location)
                inner = kind_of(member.name)
                if member.refusal is not None:
                    found.append(Refused(location, member.refusal))
                elif inner is None:
                    found.append(ArchiveFile(location, member.bytes, member.stamp))
                elif depth >= self.caps.nesting:
                    found.append(Refused(location, f"containers are nested more than {self.caps.nesting} deep"))
                else:
                    found.extend(self._nested(opener, inner, location, depth + 1))
        except ImageError as error:
            if not prefix and not found:
                raise ArchiveError(f"archive.location: {error}") from None
            found.append(Refused(prefix.removesuffix("!/") or str(self.container), str(error)))
        return _without(found, doubled) if doubled else found

    def _nested(
        self, opener: Callable[[], Stream], kind: Kind, location: str, depth: int
    ) -> list[ArchiveFile | Refused]:
        try:
            return self._listed(opener(), kind, f"{location}!/", depth)
        except ImageError as error:
            return [Refused(location, str(error))]

    def _steps(self, location: str) -> list[str]:
        """The container's path, then the path in it, and so on down to the file."""
        steps = [] if self.container is None else [self.container]
        start = 0
        for match in STEP.finditer(location):
            steps.append(location[start : match.end() - 2])
            start = match.end()
        return [*steps, location[start:]]

    def _sorted_out(self, locations: Iterable[str]) -> tuple[list[str], dict[str, dict[tuple[str, ...], str]]]:
        """Files that lie plainly, and by outermost container the steps in it to each wanted location."""
        plain: list[str] = []
        inside: dict[str, dict[tuple[str, ...], str]] = {}
        for location in dict.fromkeys(locations):
            outer, *inner = self._steps(location)
            if inner:
                inside.setdefault(outer, {})[tuple(inner)] = location
            else:
                plain.append(location)
        return plain, inside

    def _streams_inside(
        self, inside: dict[str, dict[tuple[str, ...], str]]
    ) -> Iterator[tuple[str, Stream | ImageError]]:
        for outer, wanted in inside.items():
            try:
                raw = self.root.open(outer, block=CONTAINER_BYTES)
            except ImageError as error:
                yield from ((location, error) for location in wanted.values())
                continue
            with raw:
                yield from self._wanted(raw, outer, wanted)

    def _wanted(
        self, stream: BinaryIO | Stream, name: str, wanted: dict[tuple[str, ...], str]
    ) -> Iterator[tuple[str, Stream | ImageError]]:
        """Members of one container by the steps in it; what is not met is answered with the reason."""
        by_member: dict[str, dict[tuple[str, ...], str]] = {}
        for (first, *rest), location in wanted.items():
            by_member.setdefault(first, {})[tuple(rest)] = location
        kind = kind_of(name)
        trouble = ImageError("the file is no longer in its container")
        try:
            if kind is None:
                raise ImageError("its container has a name that means none")
            for member, opener in walk(stream, kind, self.caps, wanted=by_member):
                deeper = by_member.pop(member.name, {})
                try:
                    if member.refusal is not None:
                        raise ImageError(member.refusal)
                    inner = opener()
                except ImageError as error:
                    yield from ((location, error) for location in deeper.values())
                    continue
                if () in deeper:
                    yield deeper[()], inner
                else:
                    yield from self._wanted(inner, member.name, deeper)
        except ImageError as error:
            trouble = error
        for deeper in by_member.values():
            yield from ((location, trouble) for location in deeper.values())

    def _excluded(self) -> Callable[[str], bool]:
        if not self.exclude:
            return lambda location: False
        return pathspec.GitIgnoreSpec.from_lines(self.exclude).match_file

    def _chosen(self) -> Callable[[str], bool]:
        if self.include == ("**",) and not self.exclude:
            return lambda location: True
        included = pathspec.GitIgnoreSpec.from_lines(self.include).match_file
        excluded = self._excluded()
        return lambda location: included(location) and not excluded(location)


def _without(found: list[ArchiveFile | Refused], doubled: set[str]) -> list[ArchiveFile | Refused]:
    """Replace every member whose name occurs twice by one refusal: which of them is meant, nobody can know."""
    kept = [
        entry
        for entry in found
        if entry.location not in doubled and not any(entry.location.startswith(f"{name}!/") for name in doubled)
    ]
    return [*kept, *(Refused(name, "its name occurs more than once in its container") for name in sorted(doubled))]


def _whole(stream: Stream | ImageError) -> bytes | ImageError:
    if isinstance(stream, ImageError):
        return stream
    try:
        return stream.read()
    except ImageError as error:
        return error


def _ahead(function: Callable[[_Item], _Answer], items: Iterable[_Item]) -> Iterator[_Answer]:
    """Like map, with a few calls in flight; answers come in order."""
    with ThreadPoolExecutor(_REQUESTS) as pool:
        waiting: deque[Future[_Answer]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _REQUESTS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
