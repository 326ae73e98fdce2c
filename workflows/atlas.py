"""The atlas of an audit, from its files."""

import csv
import io
from collections.abc import Mapping

import numpy as np

from storage.documents import read_document
from storage.errors import ConfigurationError, ImageError
from storage.nifti import read_label_volume
from tasks.atlas import Atlas
from workflows import configuration

_ATLAS_BYTES = 1 << 30
_COLUMNS = ["label", "name"]


def read_atlas(asked: configuration.Atlas) -> Atlas:
    """The label volume and the names of its regions. Raises ConfigurationError where they do not make an atlas."""
    try:
        labels, spacing = read_label_volume(read_document(asked.file, "explain.atlas.file", limit=_ATLAS_BYTES))
    except ImageError as error:
        raise ConfigurationError(f"explain.atlas.file: {error}.") from error
    present = [int(label) for label in np.unique(labels) if label]
    if not present:
        raise ConfigurationError("explain.atlas.file: every voxel is 0; expected a region's number in some of them.")
    if asked.names is None:
        return Atlas(labels, {label: f"region {label}" for label in present}, spacing)
    names = _names(read_document(asked.names, "explain.atlas.names"))
    missing = [label for label in names if label not in present]
    if missing:
        raise ConfigurationError(
            f"explain.atlas.names: {len(missing)} of {len(names)} labels are in no voxel of the atlas, "
            f"{missing[0]} ({names[missing[0]]}) among them."
        )
    return Atlas(labels, names, spacing)


def _names(document: bytes) -> Mapping[int, str]:
    try:
        rows = list(csv.DictReader(io.StringIO(document.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError("explain.atlas.names: cannot be read as CSV in UTF-8.") from error
    if not rows or not set(_COLUMNS) <= rows[0].keys():
        raise ConfigurationError("explain.atlas.names: expected a CSV file with the columns label and name.")
    if not all(row["label"] and row["name"] for row in rows):
        raise ConfigurationError("explain.atlas.names: a row lacks its label or its name.")
    try:
        names = {int(row["label"]): row["name"] for row in rows}
    except ValueError as error:
        raise ConfigurationError("explain.atlas.names: a label is no whole number.") from error
    if len(set(names.values())) < len(rows) or 0 in names:
        raise ConfigurationError("explain.atlas.names: a label or a name is there twice, or label 0, the background.")
    return names
