"""Builds the catalogue on Ray: the archive is listed once, headers are read by many tasks."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import OutOfMemoryError, WorkerCrashedError

from storage.archive import Archive, ArchiveCaps, ArchiveFile, Refused
from storage.boxes import BoxColumns, DrawnBox, place_boxes, read_boxes, rejected_in_words
from storage.catalogue import Frames, Located, arrange, catalogue_files, reject, rejected_table, rows_to_table
from storage.decode import DecodeOptions
from storage.documents import read_document
from storage.errors import ArchiveError, ConfigurationError
from storage.identity import Identity
from storage.labels import (
    Label,
    LabelColumns,
    folder_labels,
    read_labels,
    resolve,
    resolve_with_folders,
)
from storage.series import assemble_volumes, catalogue_slices, no_slices
from workflows import configuration
from workflows.progress import Progress

_CHUNK_FILES = 512
_CHUNKS_A_CPU = 4
_STAGE = "catalogue"
# From here on, unpacking a compressed tar from its start for every shard is worth a word.
_LONG_SCAN_BYTES = 1 << 30
_EMPTY_SPLIT = "archive.split: no file of the archive belongs to it by the label file"
_UNLABELLED = Label()
_KILLED = "reading its header ended the process that read it"


class EmptySplitError(ArchiveError):
    """No file belongs to the split that was asked for."""


@dataclass(frozen=True, slots=True)
class BuiltCatalogue:
    """All that was found: ``table`` by CATALOGUE_SCHEMA, ``rejected`` the part of it that cannot be read,
    ``rejected_boxes`` those of the box file that fit no image of it."""

    table: pa.Table
    rejected: pa.Table
    rejected_boxes: pa.Table
    listing_sha256: str
    files: int
    bytes: int


def open_archive(archive: configuration.Archive) -> Archive:
    """The archive as configured; raises ArchiveError when nothing is there."""
    return Archive.open(
        archive.location,
        include=archive.include,
        exclude=archive.exclude,
        caps=ArchiveCaps(**archive.caps.model_dump()),
    )


def decode_options(archive: configuration.Archive) -> DecodeOptions:
    """How the archive's files become pixels, as configured."""
    caps = archive.caps
    return DecodeOptions(
        window=archive.window,
        pixels=caps.pixels,
        voxels=caps.voxels,
        range=archive.range,
        uneven=archive.uneven,
        file_bytes=caps.file_bytes,
        ratio=caps.ratio,
    )


def listing_digest(archive: configuration.Archive) -> str:
    """SHA-256 over what the archive's root lists and over the label and box files: differs when any of them changed.

    Containers count by their own size and time, so that asking is cheap.
    """
    return _digest(archive, open_archive(archive).outer_files())


def build_catalogue(
    archive_configuration: configuration.Archive,
    *,
    shard_images: int,
    shard_bytes: int,
    progress: Progress,
    classes: Collection[str] | None = (),
) -> BuiltCatalogue:
    """List the archive, read every header in Ray tasks (Ray must be up), and arrange the rows into shards.

    ``classes`` are those of the model, None: those that images are labelled with. Boxes of other labels are rejected.
    Raises ArchiveError for an archive that cannot be listed or is empty, ConfigurationError for label files.
    """
    archive = open_archive(archive_configuration)
    outer = list(archive.outer_files())
    files, refused = _listed(archive, outer)
    locations = [file.location for file in files]
    labels = _labels(archive_configuration, locations, progress)
    drawn = _drawn(archive_configuration)
    split = archive_configuration.split
    if split is not None:
        if archive_configuration.images == "frames":
            files = [file for file in files if labels.get(file.location, _UNLABELLED).split == split]
        if refused:
            progress.note(f"{len(refused)} refused item(s) belong to no split and are left out")
        refused = []
        if not files:
            raise EmptySplitError(_EMPTY_SPLIT)
    _tell_long_scans(archive, files, progress)
    identity = Identity.load(file=archive_configuration.key.file, env=archive_configuration.key.env)
    chosen = archive_configuration.frames if archive_configuration.images == "frames" else "volumes"
    reading = _Reading(archive, identity, chosen, labels)
    readable, slices, rejections = _read_headers(reading, files, progress)
    if archive_configuration.images == "volumes":
        if split is not None:  # not before, as a label may name one slice and mean its volume
            readable = readable.filter(pc.equal(readable["split"], split))
            rejections = [item for item in rejections if labels.get(item[1], _UNLABELLED).split == split]
        volumes, faults = assemble_volumes(
            slices,
            identity=identity,
            uneven=archive_configuration.uneven,
            voxels=archive.caps.voxels,
            split=split,
        )
        readable = pa.concat_tables([readable, rows_to_table(volumes)])
        rejections.extend(faults)
        if split is not None and not len(readable) and not rejections:
            raise EmptySplitError(_EMPTY_SPLIT)
    rejections.extend(reject(identity, item.location, item.reason) for item in refused)
    table = arrange(readable, rejections, shard_images=shard_images, shard_bytes=shard_bytes)
    table, rejected_boxes = place_boxes(table, drawn, locations, classes)
    told = rejected_in_words(rejected_boxes)
    if told:
        progress.note(told)
    return BuiltCatalogue(
        table,
        rejected_table(rejection for rejection, _ in sorted(rejections, key=lambda item: item[1])),
        rejected_boxes,
        _digest(archive_configuration, outer),
        len(files) + len(refused),
        sum(file.bytes for file in files),
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """What every task needs, and what only its own files need."""

    archive: Archive
    identity: Identity
    chosen: Frames | Literal["volumes"]
    labels: Mapping[str, Label]


def _digest(archive: configuration.Archive, outer: Iterable[ArchiveFile | Refused]) -> str:
    digest = hashlib.sha256()
    for line in sorted(map(_listing_line, outer)):
        digest.update(line)
    for where, table in (("archive.labels.file", archive.labels), ("archive.boxes.file", archive.boxes)):
        if table is not None and table.file is not None:
            digest.update(hashlib.sha256(read_document(table.file, where)).digest())
    return digest.hexdigest()


def _listed(archive: Archive, outer: Iterable[ArchiveFile | Refused]) -> tuple[list[ArchiveFile], list[Refused]]:
    files: list[ArchiveFile] = []
    refused: list[Refused] = []
    for found in archive.files(outer):
        if isinstance(found, ArchiveFile):
            files.append(found)
        else:
            refused.append(found)
    if not files and not refused:
        raise ArchiveError("archive.location holds no file that `include` and `exclude` leave over")
    return sorted(files, key=lambda file: file.location), refused


def _listing_line(found: ArchiveFile | Refused) -> bytes:
    rest = (str(found.bytes), found.stamp) if isinstance(found, ArchiveFile) else (found.reason,)
    return "\0".join((found.location, *rest)).encode("utf-8", "surrogatepass") + b"\n"


def _labels(archive: configuration.Archive, locations: Sequence[str], progress: Progress) -> Mapping[str, Label]:
    labels: Mapping[str, Label] = {}
    if archive.labels is not None and archive.labels.folders:
        labels = folder_labels(locations, healthy=archive.labels.healthy)
    elif archive.labels is not None and archive.labels.file is not None:
        find = resolve_with_folders if archive.images == "volumes" else resolve
        found = find(
            read_labels(read_document(archive.labels.file, "archive.labels.file"), _label_columns(archive.labels)),
            locations,
        )
        labels = found.by_location
        if found.unmatched:
            progress.note(
                f"{found.unmatched} names in the label file match no file of the archive, or several; "
                f"{len(labels)} match one"
            )
    if archive.split is not None and (archive.labels is None or archive.labels.split is None):
        raise ConfigurationError("archive.split needs archive.labels.split: the column that names the split of a row")
    return labels


def _drawn(archive: configuration.Archive) -> list[DrawnBox]:
    boxes = archive.boxes
    if boxes is None:
        return []
    columns = BoxColumns(boxes.image, boxes.label, boxes.columns, boxes.form)
    return read_boxes(read_document(boxes.file, "archive.boxes.file"), columns)


def _label_columns(labels: configuration.Labels) -> LabelColumns:
    return LabelColumns(
        labels.image,
        labels.label,
        labels.separator,
        None if labels.classes is None else tuple(labels.classes),
        labels.split,
        labels.patient,
        labels.healthy,
    )


def _tell_long_scans(archive: Archive, files: Sequence[ArchiveFile], progress: Progress) -> None:
    size = sum(file.bytes for file in files if archive.scan_of(file.location) is not None)
    if size >= _LONG_SCAN_BYTES:
        progress.note(
            f"{size >> 20} MiB of the archive lie in compressed tars, which are unpacked from their start for every "
            "shard. A folder, a .zip or a plain .tar is read much faster."
        )


def _chunks(archive: Archive, files: Sequence[ArchiveFile]) -> Iterator[Sequence[ArchiveFile]]:
    """Runs of files for one task each; a container that is read from its start stays with one task."""
    start = 0
    for end in range(1, len(files) + 1):
        if end == len(files):
            yield files[start:end]
            return
        scan = archive.scan_of(files[end].location)
        together = scan is not None and scan == archive.scan_of(files[end - 1].location)
        if end - start >= _CHUNK_FILES and not together:
            yield files[start:end]
            start = end


def _read_headers(
    reading: _Reading, files: Sequence[ArchiveFile], progress: Progress
) -> tuple[pa.Table, pa.Table, list[Located]]:
    """Rows, slices and rejections of all headers: a bounded number of tasks at a time.

    A chunk whose process dies is halved.
    """
    shared = ray.put((reading.archive, reading.identity, reading.chosen))
    waiting = list(_chunks(reading.archive, files))[::-1]
    running: dict[Any, Sequence[ArchiveFile]] = {}
    tables: list[pa.Table] = [rows_to_table([])]
    slices: list[pa.Table] = [no_slices()]
    rejections: list[Located] = []
    progress.start(_STAGE, len(files), "files")
    while waiting or running:
        window = max(1, int(ray.cluster_resources().get("CPU", 1))) * _CHUNKS_A_CPU  # the cluster may have grown
        while waiting and len(running) < window:
            chunk = waiting.pop()
            running[_submit(shared, reading, chunk)] = chunk
        done, _ = ray.wait(list(running), num_returns=1)
        for reference in done:
            chunk = running.pop(reference)
            try:
                table, found, rejected = ray.get(reference)
            except (WorkerCrashedError, OutOfMemoryError):
                if len(chunk) > 1:
                    waiting.extend((chunk[: len(chunk) // 2], chunk[len(chunk) // 2 :]))
                    continue
                rejections.append(reject(reading.identity, chunk[0].location, _KILLED))
            else:
                tables.append(table)
                slices.append(found)
                rejections.extend(rejected)
            progress.advance(_STAGE, len(chunk))
    progress.finish(_STAGE)
    return pa.concat_tables(tables), pa.concat_tables(slices), rejections


def _submit(shared: Any, reading: _Reading, chunk: Sequence[ArchiveFile]) -> Any:
    locations = [file.location for file in chunk]
    labels = {name: reading.labels[name] for name in locations if name in reading.labels}
    return _catalogue_chunk_task.remote(shared, chunk, labels)


def _catalogue_chunk(
    shared: tuple[Archive, Identity, Frames | Literal["volumes"]],
    files: Sequence[ArchiveFile],
    labels: Mapping[str, Label],
) -> tuple[pa.Table, pa.Table, list[Located]]:
    archive, identity, chosen = shared
    if chosen == "volumes":
        rows, slices, rejections = catalogue_slices(archive, files, identity=identity, labels=labels)
        return rows_to_table(rows), slices, rejections
    rows, rejections = catalogue_files(archive, files, identity=identity, frames=chosen, labels=labels)
    return rows_to_table(rows), no_slices(), rejections


_catalogue_chunk_task = ray.remote(num_cpus=1, max_retries=1)(_catalogue_chunk)
