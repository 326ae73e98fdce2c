"""Writes phantoms as DICOM files. Every header says that patient and image are synthetic."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from examples.phantom.phantoms import Phantom
from examples.phantom.settings import Settings

_COMMENT = "SYNTHETIC: drawn by a computer program, shows no person, not for clinical use"
_WIDTH = 430.0  # mm that an image shows
_MAKER = "SYNTHETIC PHANTOM"


def image_name(number: int) -> str:
    """Path below the archive's root: at most 1000 files a folder."""
    return f"phantom-{number // 1000:05d}/phantom-{number:08d}.dcm"


def write_dicom(path: Path, phantom: Phantom, settings: Settings) -> None:
    """12 or 14 bits of which the window shows a part, every fourth or so MONOCHROME1, as archives have them."""
    random = settings.random(9, phantom.facts.number)
    bits = int(random.choice((12, 14)))
    inverted = bool(random.random() < 0.25)
    width = int((0.6 + 0.3 * random.random()) * 2**bits)
    low = int(random.integers(0, 2**bits - width))
    dataset = _described(phantom, settings)
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", 1 if inverted else -1
    dataset.Rows, dataset.Columns = phantom.pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = low + width / 2, width
    dataset.PixelSpacing = dataset.ImagerPixelSpacing = [round(_WIDTH / settings.side, 4)] * 2
    dataset.PixelData = _stored(1 - phantom.pixels if inverted else phantom.pixels, low, width).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _stored(values: NDArray[np.float32], low: int, width: int) -> NDArray[np.uint16]:
    """The window's first value is black, its last white."""
    return np.rint(low + values * (width - 1)).astype("<u2")


def _described(phantom: Phantom, settings: Settings) -> Dataset:
    """Everything but the image. Unknown type 2 elements are empty."""
    number, (block, place) = phantom.facts.number, phantom.facts.patient
    patient = f"{settings.seed}-{block:07d}-{place:02d}"
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationVersionName = "SYNTHETIC"
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = _uid("image", settings.seed, number)
    dataset.PatientName = f"SYNTHETIC^PHANTOM {patient}"
    dataset.PatientID = f"SYNTHETIC-{patient}"
    dataset.PatientComments = dataset.ImageComments = _COMMENT
    dataset.StudyInstanceUID = _uid("study", settings.seed, number)
    dataset.SeriesInstanceUID = _uid("series", settings.seed, number)
    dataset.StudyDescription = dataset.SeriesDescription = "SYNTHETIC phantom of a chest"
    dataset.Manufacturer = dataset.ManufacturerModelName = _MAKER
    for keyword in (
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "ReferringPhysicianName",
        "StudyID",
        "AccessionNumber",
        "PatientOrientation",
        "ImageLaterality",
    ):
        setattr(dataset, keyword, "")
    dataset.Modality = "DX"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.BodyPartExamined, dataset.ViewPosition = "CHEST", "PA"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.LossyImageCompression = "00"
    dataset.BurnedInAnnotation = "NO"
    return dataset


def _uid(kind: str, seed: int, number: int) -> str:
    return generate_uid(entropy_srcs=["lucency phantom", kind, str(seed), str(number)])
