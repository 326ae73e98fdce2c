"""Writes canvases as DICOM secondary captures and as PNG files. Every patient is plainly made up."""

from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from examples.digits.canvases import Floats

_BITS = 12
_WHITE = 2**_BITS - 1


def write_png(path: Path, canvas: Floats) -> None:
    """8-bit grey."""
    Image.fromarray(np.rint(canvas * 255).astype(np.uint8)).save(path)


def write_dicom(path: Path, canvas: Floats, *, number: int, inverted: bool) -> None:
    """12-bit grey with a window over the full range; `inverted` stores MONOCHROME1, where 0 is white."""
    stored = np.rint(canvas * _WHITE).astype("<u2")
    dataset = _described(number)
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.Rows, dataset.Columns = canvas.shape
    dataset.SamplesPerPixel = 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, _BITS, _BITS - 1
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = 2 ** (_BITS - 1), 2**_BITS
    dataset.PixelData = (_WHITE - stored if inverted else stored).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _described(number: int) -> Dataset:
    """Everything but the image: patient, study, series, equipment. Unknown type 2 elements are empty."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = _uid("image", number)
    dataset.PatientName = f"SYNTHETIC^DIGIT {number:04d}"
    dataset.PatientID = f"SYNTHETIC-{number:04d}"
    dataset.StudyInstanceUID = _uid("study", number)
    dataset.SeriesInstanceUID = _uid("series", number)
    for keyword in (
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "ReferringPhysicianName",
        "StudyID",
        "AccessionNumber",
        "Manufacturer",
        "PatientOrientation",
    ):
        setattr(dataset, keyword, "")
    dataset.Modality = "OT"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.ConversionType = "SYN"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.BurnedInAnnotation = "NO"
    return dataset


def _uid(kind: str, number: int) -> str:
    return generate_uid(entropy_srcs=["lucency digits", kind, str(number)])
