"""Labels that somebody wrote into a CSV file, found by the image they speak of."""

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from storage.containers import SUFFIX
from storage.errors import ConfigurationError

_IMAGE_SUFFIX = re.compile(r"\.(dcm|dicom|png|jpe?g|tiff?|nii(\.gz)?)$", re.IGNORECASE)
_YES = {"1", "1.0", "true"}
_NO = {"0", "0.0", "false"}

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of one image. ``labels`` None: unlabelled; (): labelled, nothing positive."""

    labels: tuple[str, ...] | None = None
    split: str | None = None
    patient: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LabelColumns:
    """Which columns of the label file mean what; the configuration's ``archive.labels`` explains each."""

    image: str = "image"
    label: str | None = "label"
    separator: str = "|"
    classes: tuple[str, ...] | None = None
    split: str | None = None
    patient: str | None = None
    healthy: str | None = "No Finding"


@dataclass(frozen=True, slots=True)
class Resolved(Generic[_Value]):
    """What a CSV file says of the files of an archive, by location, and how many of its names were not found."""

    by_location: Mapping[str, _Value]
    unmatched: int


def read_labels(payload: bytes, columns: LabelColumns) -> dict[str, Label]:
    """Labels by the image's name in the file; several lines of one image add up.

    Raises ConfigurationError that names column and line, never a value.
    """
    where = "archive.labels.file"
    named = columns.classes or ((columns.label,) if columns.label else ())
    optional = tuple(name for name in (columns.split, columns.patient) if name)
    found: dict[str, Label] = {}
    for line, row in read_lines(payload, where, (columns.image, *named, *optional)):
        if row is None:
            raise ConfigurationError(f"{where}, line {line}: fewer cells than columns")
        new = Label(
            _indicated(row, columns.classes, where, line) if columns.classes else _listed(row, columns),
            _cell(row, columns.split),
            _cell(row, columns.patient),
        )
        name = row[columns.image]
        old = found.get(name)
        found[name] = new if old is None else _joined(old, new, where, line)
    return found


def folder_labels(locations: Collection[str], *, healthy: str | None) -> dict[str, Label]:
    """The innermost folder's name as the label of each image; an image at the root has none."""
    found: dict[str, Label] = {}
    for location in locations:
        above = location.replace("!/", "/").split("/")[:-1]
        if above:
            name = SUFFIX.sub("", above[-1])
            found[location] = Label(() if name == healthy else (name,))
    return found


def resolve(named: Mapping[str, _Value], locations: Collection[str]) -> Resolved[_Value]:
    """What is said of each file, by :func:`located` names."""
    files = located(named, locations)
    return Resolved({files[name]: value for name, value in named.items() if name in files}, len(named) - len(files))


def located(names: Iterable[str], locations: Collection[str]) -> dict[str, str]:
    """The file of each name that has one: by path below the root, else by a file name that is unique, with its suffix
    or without."""
    by_name = _unique_by_name(locations)
    known = set(locations)
    return {name: name if name in known else by_name[name] for name in names if name in known or name in by_name}


def resolve_with_folders(named: Mapping[str, _Value], locations: Collection[str]) -> Resolved[_Value]:
    """Like :func:`resolve`; a name may also be that of a folder or container, and then speaks of all files below it.

    A file's own name goes before its folders', an inner folder before an outer one. A file name and a folder of the
    same name match only if the file lies in the folder: else nobody knows which is meant.
    """
    above: dict[str, list[str]] = {}  # of each folder, it and those above it, the innermost first
    for location in locations:
        folder = location.rpartition("/")[0]
        if folder not in above:
            above[folder] = [*_and_above(folder)]
    folders = {folder for chain in above.values() for folder in chain}
    files = set(locations)
    files_by_name, folders_by_name = _unique_by_name(files), _unique_by_name(folders)
    of_files: dict[str, _Value] = {}
    of_folders: dict[str, _Value] = {}
    unmatched = 0
    for name, value in named.items():
        if name in files:
            of_files[name] = value
        elif (path := name.rstrip("/")) in folders:
            of_folders[path] = value
        else:
            file, folder_named = files_by_name.get(name), folders_by_name.get(name)
            if folder_named is not None and (
                file is None or file.startswith((f"{folder_named}/", f"{folder_named}!/"))
            ):
                of_folders[folder_named] = value
            elif file is not None and folder_named is None:
                of_files[file] = value
            else:
                unmatched += 1
    found: dict[str, _Value] = {}
    for location in locations:
        if location in of_files:
            found[location] = of_files[location]
            continue
        nearest = next((path for path in above[location.rpartition("/")[0]] if path in of_folders), None)
        if nearest is not None:
            found[location] = of_folders[nearest]
    return Resolved(found, unmatched)


def _and_above(folder: str) -> Iterator[str]:
    while folder:
        yield folder.removesuffix("!")
        folder = folder.rpartition("/")[0]


def _unique_by_name(locations: Collection[str]) -> dict[str, str]:
    found: dict[str, str | None] = {}
    stems: dict[str, str | None] = {}
    for location in locations:
        name = location.rpartition("/")[2]
        found[name] = None if name in found else location
        stem = SUFFIX.sub("", _IMAGE_SUFFIX.sub("", name))
        stems[stem] = None if stem in stems else location
    return {name: location for name, location in (stems | found).items() if location is not None}


def read_lines(payload: bytes, where: str, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | None]]:
    """The number of each line of a CSV file and its cells in these columns; None: it has fewer cells than those.

    Raises ConfigurationError, naming the key ``where``, for what is no CSV file or lacks a column.
    """
    try:
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{where}: expected a CSV file in UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    header = reader.fieldnames or ()
    missing = [name for name in columns if name not in header]
    if missing:
        raise ConfigurationError(
            f"{where}: no column {', '.join(missing)}; the columns are {', '.join(header) or 'none'}"
        )
    try:
        for row in reader:
            short = any(row.get(name) is None for name in columns)
            yield reader.line_num, None if short else {name: row[name].strip() for name in columns}
    except csv.Error:
        raise ConfigurationError(f"{where}, line {reader.line_num}: not readable as CSV") from None


def _cell(row: Mapping[str, str], column: str | None) -> str | None:
    return (row[column] or None) if column else None


def _listed(row: Mapping[str, str], columns: LabelColumns) -> tuple[str, ...] | None:
    """Labels joined in one cell; an empty cell means unlabelled."""
    cell = row[columns.label] if columns.label else ""
    if not cell:
        return None
    parts = cell.split(columns.separator) if columns.separator else [cell]
    names = dict.fromkeys(part.strip() for part in parts)
    return tuple(name for name in names if name and name != columns.healthy)


def _indicated(row: Mapping[str, str], classes: Sequence[str], where: str, line: int) -> tuple[str, ...] | None:
    """One 0/1 cell a class. An empty cell is 0; a line of empty cells means unlabelled."""
    positive = []
    for name in classes:
        cell = row[name].lower()
        if cell in _YES:
            positive.append(name)
        elif cell and cell not in _NO:
            raise ConfigurationError(f"{where}, line {line}, column {name}: expected 0, 1 or nothing")
    return tuple(positive) if any(row[name] for name in classes) else None


def _joined(old: Label, new: Label, where: str, line: int) -> Label:
    for what, first, second in (("split", old.split, new.split), ("patient", old.patient, new.patient)):
        if first and second and first != second:
            raise ConfigurationError(f"{where}, line {line}: another {what} than an earlier line of the same image")
    labels = old.labels if new.labels is None else (*(old.labels or ()), *new.labels)
    distinct = None if labels is None else tuple(dict.fromkeys(labels))
    return Label(distinct, old.split or new.split, old.patient or new.patient)
