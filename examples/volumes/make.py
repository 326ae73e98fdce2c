"""`python -m examples.volumes.make OUT` writes synthetic volumes, an atlas of eight regions and audit.yaml.

Every other volume is a DICOM series, the others are NIfTI files. A third have no lesion; a ball stands for one in the
others. Of one series a slice is missing, and the audit says so. Every patient is plainly made up.
"""

import argparse
import csv
import shutil
from itertools import product
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHAPE = (24, 20, 16)  # slices from feet to head, rows from front to back, columns from right to left
SPACING = (2.0, 1.0, 1.25)  # mm along each
REGIONS = tuple(
    f"{height} {depth} {side}"
    for height, depth, side in product(("lower", "upper"), ("front", "back"), ("right", "left"))
)
_TISSUE, _LESION, _NOISE = 40.0, 900.0, 15.0  # Hounsfield-like
_RADIUS = 6.0  # mm
_WHOLE = 1000  # the window's width: 0 is black

Volume = NDArray[np.int16]


def make(out: Path, volumes: int = 12) -> list[str]:
    """Write the example below `out`; returns the region of each volume's lesion, or "" where there is none."""
    random = np.random.default_rng(8)
    archive = out / "archive"
    archive.mkdir(parents=True, exist_ok=True)
    regions, names = [], []
    for number in range(volumes):
        region = int(random.integers(len(REGIONS))) if number % 3 else None
        volume = draw(region, random)
        regions.append("" if region is None else REGIONS[region])
        if number % 2:
            names.append(f"volume-{number:02d}.nii.gz")
            nifti(volume).to_filename(archive / names[-1])
        else:
            names.append(f"volume-{number:02d}")
            write_series(archive / names[-1], volume, number)
    # The last series becomes one with a gap.
    missing = archive / f"volume-{(volumes - 1) // 2 * 2:02d}" / f"{SHAPE[0] // 2:03d}.dcm"
    missing.unlink()
    labels = np.zeros(SHAPE, np.int16)
    for label in range(len(REGIONS)):
        labels[_octant(label)] = label + 1
    nifti(labels).to_filename(out / "atlas.nii.gz")
    _write_csv(out / "atlas.csv", ("label", "name"), [(label + 1, name) for label, name in enumerate(REGIONS)])
    _write_csv(
        out / "labels.csv",
        ("image", "label"),
        [(name, "lesion" if region else "clear") for name, region in zip(names, regions, strict=True)],
    )
    here = Path(__file__).parent
    for name in ("brightness.py", "audit.yaml"):
        shutil.copyfile(here / name, out / name)
    return regions


def draw(region: int | None, random: np.random.Generator) -> Volume:
    """[d,h,w]: noisy tissue, with a ball in the middle of a region."""
    volume = _TISSUE + _NOISE * random.standard_normal(SHAPE)
    if region is not None:
        places = _octant(region)
        centre = [(place.start + place.stop - 1) / 2 for place in places]
        squares = [
            ((np.arange(side) - middle) * mm) ** 2 for side, middle, mm in zip(SHAPE, centre, SPACING, strict=True)
        ]
        distance = np.sqrt(squares[0][:, None, None] + squares[1][:, None] + squares[2])
        volume[distance <= _RADIUS] += _LESION - _TISSUE
    return np.rint(volume).astype(np.int16)


def _octant(region: int) -> tuple[slice, ...]:
    """The eighth of the volume with this place in REGIONS."""
    halves = ((region >> bit) & 1 for bit in (2, 1, 0))
    return tuple(slice(side // 2 * half, side // 2 * (half + 1)) for side, half in zip(SHAPE, halves, strict=True))


def nifti(volume: Volume) -> Nifti1Image:
    """NIfTI counts columns, rows, slices, and in mm to the right and to the front."""
    depth, height, width = SPACING
    return Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), np.diag([-width, -height, depth, 1.0]))


def write_series(folder: Path, volume: Volume, number: int) -> None:
    """A slice a file, named by its place from the head down, so that names and positions run against each other."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, pixels in enumerate(volume):
        dataset = _described(number, place)
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.PixelData = pixels.astype("<i2").tobytes()
        dataset.save_as(folder / f"{len(volume) - place:03d}.dcm", enforce_file_format=True)


def _described(number: int, place: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = _uid("image", number, place)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid("study", number), _uid("series", number)
    dataset.FrameOfReferenceUID = _uid("frame", number)
    dataset.PatientName, dataset.PatientID = f"SYNTHETIC^VOLUME {number:02d}", f"SYNTHETIC-VOLUME-{number:02d}"
    dataset.Modality = "CT"
    dataset.ImagePositionPatient = [0.0, 0.0, place * SPACING[0]]
    dataset.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    dataset.PixelSpacing = list(SPACING[1:])
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "HU"
    dataset.WindowCenter, dataset.WindowWidth = _WHOLE // 2, _WHOLE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.BurnedInAnnotation = "NO"
    return dataset


def _uid(*parts: object) -> str:
    return generate_uid(entropy_srcs=["lucency volumes", *map(str, parts)])


def _write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.volumes.make", description=__doc__)
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--volumes", type=int, default=12)
    arguments = parser.parse_args()
    made = make(arguments.out, arguments.volumes)
    print(f"{len(made)} synthetic volumes, {sum(map(bool, made))} with a lesion, below {arguments.out / 'archive'}")
    print(f"next: lucency audit {arguments.out / 'audit.yaml'}")


if __name__ == "__main__":
    main()
