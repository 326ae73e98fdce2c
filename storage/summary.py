"""What one image file says about itself, before any of its pixels is read."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """Which volume a DICOM image is a slice of, and where it lies: values as written, b"" where there are none.

    UIDs go no further than their HMACs.
    """

    series: bytes = field(repr=False)
    reference: bytes = field(repr=False)  # frame of reference
    position: bytes
    orientation: bytes
    spacing: bytes
    photometric: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """The parts of a header a catalogue needs. Fields as in CatalogueRow."""

    format: str
    height: int
    width: int
    channels: int
    bits: int
    frames: int = 1
    modality: str | None = None
    burned_in: bool | None = None
    depth: int = 1  # slices of a NIfTI volume
    spacing: tuple[float, ...] | None = None  # mm a row and column; a slice, row and column of a NIfTI volume
    unpacked: int = 0  # bytes that a packed file (.nii.gz) declares
    slice: "SliceHeader | None" = None  # of DICOM
    patient: bytes | None = field(default=None, repr=False)  # the Patient ID as written; goes no further than its HMAC
