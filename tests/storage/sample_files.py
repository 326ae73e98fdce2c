"""Small real files, made in memory: DICOM by pydicom, rasters by Pillow, containers by the standard library."""

import io
import tarfile
import zipfile
from collections.abc import Mapping

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage


def dicom(
    *,
    rows: int = 4,
    columns: int = 6,
    frames: int | None = None,
    syntax: str = ExplicitVRLittleEndian,
    **elements: object,
) -> bytes:
    """A one-channel DICOM image with any further elements by keyword."""
    dataset = Dataset()
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality = "OT"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    if frames is not None:
        dataset.NumberOfFrames = frames
    dataset.PixelData = bytes(rows * columns * (frames or 1))
    for keyword, value in elements.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    sink = io.BytesIO()
    dataset.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


def raster(format: str, mode: str = "L", *, width: int = 6, height: int = 4, pages: int = 1) -> bytes:
    """A picture of the given Pillow mode."""
    dtype = np.uint16 if mode == "I;16" else np.uint8
    channels = {"L": (), "I;16": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}.get(mode, ())
    image = Image.fromarray(np.zeros((height, width, *channels), dtype))
    if mode in ("P", "1", "CMYK"):
        image = image.convert(mode)
    sink = io.BytesIO()
    more = {"save_all": True, "append_images": [image] * (pages - 1)} if pages > 1 else {}
    image.save(sink, format, **more)
    return sink.getvalue()


def zipped(files: Mapping[str, bytes], *, packing: int = zipfile.ZIP_DEFLATED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", packing) as container:
        for name, payload in files.items():
            container.writestr(name, payload)
    return sink.getvalue()


def tarred(files: Mapping[str, bytes], *, mode: str = "w") -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as container:
        for name, payload in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            container.addfile(entry, io.BytesIO(payload))
    return sink.getvalue()


def contained(kind: str, files: Mapping[str, bytes]) -> bytes:
    """The files in a container of this kind: zip, tar or tar.gz."""
    return zipped(files) if kind == "zip" else tarred(files, mode="w:gz" if kind == "tar.gz" else "w")
