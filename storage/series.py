"""The catalogue of an archive of volumes: files become slices, slices of one series become one row.

Many processes read headers into tables of slices; one groups them, column by column, as there may be millions.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.archive import Archive, ArchiveFile
from storage.catalogue import Located, header_of, reject, row_of
from storage.dicom_summary import SLICE_ELEMENTS, decimals
from storage.errors import ImageError
from storage.identity import Identity
from storage.labels import Label
from storage.listing import ArchiveCaps
from storage.quiet import quiet
from storage.records import CatalogueRow
from storage.summary import Header, SliceHeader
from storage.volumes import Axes, Uneven, refuse_large, refuse_mixed, stack_slices

Array = NDArray[Any]

_PLACES = {"position": 3, "orientation": 6, "spacing": 2}
_SLICES_SCHEMA = pa.schema(
    [
        ("series", pa.string()),  # keyed hashes, as UIDs lead back to patients
        ("reference", pa.string()),
        ("location", pa.large_string()),
        ("bytes", pa.int64()),
        *((name, pa.list_(pa.float64(), length)) for name, length in _PLACES.items()),  # NaN: not said
        *((name, pa.int32()) for name in ("height", "width", "channels", "bits")),
        *((name, pa.string()) for name in ("photometric", "modality", "patient", "named_patient", "labels", "split")),
        ("burned_in", pa.bool_()),
    ]
)
# Labels of a slice as one text: a separator that no label holds.
_SEPARATOR = "\0"
_UNLABELLED = Label()
_ALONE = "archive.images: frames takes images one by one"


def catalogue_slices(
    archive: Archive,
    files: Sequence[ArchiveFile],
    *,
    identity: Identity,
    labels: Mapping[str, Label] | None = None,
    caps: ArchiveCaps | None = None,
) -> tuple[list[CatalogueRow], pa.Table, list[Located]]:
    """Volumes of one file, the slices of others for :func:`assemble_volumes`, and what belongs to no volume.

    Reads headers only. ``labels`` are looked up by location.
    """
    caps = caps or archive.caps
    sizes = {file.location: file.bytes for file in files}
    rows: list[CatalogueRow] = []
    slices: list[dict[str, Any]] = []
    rejections: list[Located] = []
    with quiet("pydicom"):
        for location, stream in archive.streams(sizes):
            label = (labels or {}).get(location, _UNLABELLED)
            try:
                header = header_of(stream, sizes[location], caps, SLICE_ELEMENTS)
                if header.slice is None or header.frames > 1:
                    row = row_of(header, location, sizes[location], identity, label)
                    rows.append(_one_file(row, caps))
                else:
                    slices.append(_slice(header, header.slice, location, sizes[location], identity, label))
            except ImageError as error:
                rejections.append(reject(identity, location, str(error)))
    return rows, pa.Table.from_pylist(slices, _SLICES_SCHEMA), rejections


def no_slices() -> pa.Table:
    """A table of slices without any."""
    return _SLICES_SCHEMA.empty_table()


def _one_file(row: CatalogueRow, caps: ArchiveCaps) -> CatalogueRow:
    """A NIfTI file, or a multi-frame DICOM file, whose frames' places are known when it is decoded."""
    if row.format == "nifti":
        return row
    if row.format != "dicom":
        raise ImageError(f"a picture ({row.format.upper()}), which belongs to no volume; {_ALONE}")
    if row.channels > 1:
        raise ImageError(f"colour images, which make no volume; {_ALONE}")
    refuse_large((row.frames, row.height, row.width), caps.voxels)
    return dataclasses.replace(row, depth=row.frames, spacing=None)


def _slice(
    header: Header, place: SliceHeader, location: str, size: int, identity: Identity, label: Label
) -> dict[str, Any]:
    if not place.series:
        raise ImageError(f"its header names no series, so that it belongs to no volume; {_ALONE}")
    return {
        "series": identity.uid(place.series),
        "reference": identity.uid(place.reference) if place.reference else None,
        "location": location,
        "bytes": size,
        "position": decimals(place.position, 3) or (np.nan,) * 3,
        "orientation": decimals(place.orientation, 6) or (np.nan,) * 6,
        "spacing": decimals(place.spacing, 2) or (np.nan,) * 2,
        "height": header.height,
        "width": header.width,
        "channels": header.channels,
        "bits": header.bits,
        "photometric": place.photometric.decode("ascii", "replace"),
        "modality": header.modality,
        "patient": identity.patient(header.patient) if header.patient else None,
        "named_patient": identity.patient(label.patient) if label.patient else None,  # by the label file
        "labels": None if label.labels is None else _SEPARATOR.join(sorted(label.labels)),
        "split": label.split,
        "burned_in": header.burned_in,
    }


def assemble_volumes(
    slices: pa.Table, *, identity: Identity, uneven: Uneven, voxels: int, split: str | None = None
) -> tuple[list[CatalogueRow], list[Located]]:
    """Group slices by series; each series is a row, or one rejection with the reason.

    Of series without positions (projection X-rays) each file is rejected. With ``split``, what has no slice of that
    split is left out.
    """
    columns = _Columns.of(slices)
    rows: list[CatalogueRow] = []
    rejections: list[Located] = []
    for start, stop in columns.series():
        group = columns.part(start, stop)
        if split is not None and split not in group.named("split"):
            continue
        locations = group.texts("location")
        if np.isnan(group.places["position"]).all():
            reason = f"no position where slices have it, as X-rays and single enhanced frames; {_ALONE}"
            rejections.extend(
                reject(identity, location, reason)
                for location, its_split in zip(locations, group.texts("split"), strict=True)
                if split in (None, its_split)
            )
            continue
        try:
            rows.append(_volume(group, locations, identity, uneven, voxels))
        except ImageError as error:
            rejections.append(reject(identity, locations[0], str(error)))
    return rows, rejections


@dataclass(frozen=True, slots=True)
class _Columns:
    """Slices sorted by series, then by location: numbers as arrays, texts as codes into what they stand for."""

    table: pa.Table
    places: Mapping[str, Array]
    numbers: Mapping[str, Array]

    @classmethod
    def of(cls, slices: pa.Table) -> Self:
        table = slices.sort_by([("series", "ascending"), ("location", "ascending")]).combine_chunks()
        places = {
            name: table[name].combine_chunks().flatten().to_numpy().reshape(-1, length)
            for name, length in _PLACES.items()
        }
        numbers = {name: table[name].to_numpy() for name in ("height", "width", "channels", "bits", "bytes")}
        return cls(table, places, numbers)

    def series(self) -> Iterator[tuple[int, int]]:
        """Half-open ranges of rows."""
        names = self.table["series"]
        if not len(names):
            return
        another = pc.not_equal(names.slice(1), names.slice(0, len(names) - 1)).to_numpy()
        ends = [*(np.flatnonzero(another) + 1).tolist(), len(names)]
        yield from zip([0, *ends[:-1]], ends, strict=True)

    def part(self, start: int, stop: int) -> "_Columns":
        rows = slice(start, stop)
        return _Columns(
            self.table.slice(start, stop - start),
            {name: values[rows] for name, values in self.places.items()},
            {name: values[rows] for name, values in self.numbers.items()},
        )

    def texts(self, name: str) -> list[Any]:
        found: list[Any] = self.table[name].to_pylist()
        return found

    def named(self, name: str) -> list[Any]:
        """The different values that a column has, less null."""
        found: list[Any] = pc.unique(self.table[name]).drop_null().to_pylist()
        return found

    def one(self, name: str, what: str) -> Any:
        """The one value that all slices which have one agree on, or None. Raises ImageError."""
        found = self.named(name)
        if len(found) > 1:
            raise ImageError(f"its slices have {len(found)} different {what}")
        return found[0] if found else None


def _volume(group: _Columns, locations: Sequence[str], identity: Identity, uneven: Uneven, voxels: int) -> CatalogueRow:
    count = len(locations)
    if count < 2:
        raise ImageError(f"a series of one slice, which is no volume; {_ALONE}")
    if (group.numbers["channels"] > 1).any():
        raise ImageError(f"colour images, which make no volume; {_ALONE}")
    places, numbers = group.places, group.numbers
    group.one("photometric", "photometric interpretations")
    group.one("reference", "frames of reference")
    refuse_mixed(np.stack([numbers["height"], numbers["width"]], axis=1), places["orientation"], places["spacing"])
    stack = stack_slices(places["position"], places["orientation"][0], uneven=uneven)
    stored = (stack.depth, int(numbers["height"][0]), int(numbers["width"][0]))
    refuse_large(stored, voxels)
    axes = Axes.of(stack.steps(places["orientation"][0], places["spacing"][0]))
    depth, height, width = axes.sizes(stored)
    labels = group.one("labels", "labels")
    patient = group.one("patient", "patients")
    return CatalogueRow(
        id=identity.image(locations[0]),
        patient=group.one("named_patient", "patients in the label file") or patient,
        format="dicom",
        modality=group.one("modality", "modalities"),
        frame=0,
        frames=1,
        depth=depth,
        height=height,
        width=width,
        channels=1,
        bits=int(numbers["bits"].max()),
        spacing=axes.turned_spacing,
        burned_in=_any(group.texts("burned_in")),
        labels=None if labels is None else tuple(filter(None, labels.split(_SEPARATOR))),
        boxes=None,
        split=group.one("split", "splits"),
        private_location=locations[0],
        private_bytes=int(numbers["bytes"].sum()),
        private_slices=tuple(locations[index] for index in stack.order),
    )


def _any(said: Sequence[bool | None]) -> bool | None:
    """True if one slice says so, None if none does and not all deny it."""
    return True if True in said else None if None in said else False
