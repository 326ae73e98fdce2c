"""Synthetic volumes as files: DICOM series by pydicom, NIfTI by nibabel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Image, header_dtype
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage

from tests.storage.sample_files import dicom

Array = NDArray[Any]

AXIAL = (1, 0, 0, 0, 1, 0)
SPACING = (2.5, 0.75, 0.5)  # mm between slices, rows and columns


def ramp(depth: int = 5, height: int = 4, width: int = 6) -> Array:
    """[d,h,w] int16, no two voxels alike."""
    return np.arange(depth * height * width, dtype=np.int16).reshape(depth, height, width) - 20


def heights(count: int, gap: float = SPACING[0]) -> list[tuple[float, float, float]]:
    """Positions of axial slices one above the other."""
    return [(-10.0, -20.0, 30.0 + gap * place) for place in range(count)]


def slice_file(values: Array, position: Sequence[float] | None, **elements: Any) -> bytes:
    """One CT slice [h,w] int16; elements override what a slice of the series 1.2.3 has."""
    usual: dict[str, Any] = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "SeriesInstanceUID": "1.2.3",
        "FrameOfReferenceUID": "1.2.4",
        "ImageOrientationPatient": [float(cosine) for cosine in AXIAL],
        "PixelSpacing": list(SPACING[1:]),
        "PatientID": "MUSTERMANN",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "PixelData": np.ascontiguousarray(values, "<i2").tobytes(),
    }
    if position is not None:
        usual["ImagePositionPatient"] = [float(place) for place in position]
    rows, columns = values.shape
    return dicom(rows=rows, columns=columns, **{k: v for k, v in (usual | elements).items() if v is not None})


def series(values: Array, positions: Sequence[Sequence[float]] | None = None, **elements: Any) -> list[bytes]:
    """A file for each slice of [d,h,w], in their order."""
    places = heights(len(values)) if positions is None else positions
    return [slice_file(one, place, **elements) for one, place in zip(values, places, strict=True)]


def acquired(volume: Array, row: Sequence[int], column: Sequence[int], **elements: Any) -> list[bytes]:
    """The volume [d,h,w], as decoded, as a scanner would store it whose rows and columns run along these directions."""
    normal = np.cross(row, column)
    directions = np.array([normal, column, row])  # of stored slices, rows and columns; x, y, z
    axes = [2 - int(np.abs(direction).argmax()) for direction in directions]
    flipped = [place for place, direction in enumerate(directions) if direction.sum() < 0]
    stored = np.flip(volume.transpose(axes), flipped)
    spacing = [SPACING[axis] for axis in axes]
    positions = [
        tuple(float(part) for part in np.array([5.0, 6.0, 7.0]) + normal * spacing[0] * place)
        for place in range(len(stored))
    ]
    turned = {"ImageOrientationPatient": [float(x) for x in (*row, *column)], "PixelSpacing": spacing[1:]}
    return series(stored, positions, **turned, **elements)


def nifti(volume: Array, **header: Any) -> bytes:
    """The volume [d,h,w], as decoded, as a NIfTI file. header: fields of it to overwrite."""
    payload = bytearray(nifti_image(volume).to_bytes())
    fields = np.frombuffer(payload, header_dtype, 1)
    for name, value in header.items():
        fields[name] = value
    return bytes(payload)


def nifti_image(volume: Array) -> Nifti1Image:
    affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
    return Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)


def enhanced(values: Array, positions: Sequence[Sequence[float]] | None, **elements: Any) -> bytes:
    """One multi-frame file [d,h,w]; without positions, its frames do not say where they lie."""
    groups = []
    for position in positions or [()] * len(values):
        frame = Dataset()
        if position:
            place = Dataset()
            place.ImagePositionPatient = [float(part) for part in position]
            frame.PlanePositionSequence = [place]
        groups.append(frame)
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [float(cosine) for cosine in AXIAL]
    measures.PixelSpacing = list(SPACING[1:])
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    return dicom(
        rows=values.shape[1],
        columns=values.shape[2],
        frames=len(values),
        SeriesInstanceUID="1.2.9",
        BitsAllocated=16,
        BitsStored=16,
        HighBit=15,
        PixelRepresentation=1,
        PixelData=np.ascontiguousarray(values, "<i2").tobytes(),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=groups,
        **elements,
    )
