"""The plain records that cross rooms. Frozen, slotted, next to free of behaviour."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """One annotated box in pixels of the stored image: half-open, origin top left."""

    label: str
    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True, slots=True)
class CatalogueRow:
    """One image (or one frame of a multi-frame file) of the archive.

    ``private_location`` is the only field that may identify a patient; it never
    leaves the catalogue. The location is the path below the archive's root with ``/`` separators;
    ``!/`` steps into a container: ``2019/chest.zip!/a/b.dcm``.
    """

    id: str  # keyed HMAC of location and frame, 32 hex digits
    patient: str | None  # keyed HMAC of the patient id, 32 hex digits
    format: str  # dicom | png | jpeg | tiff
    modality: str | None  # DICOM modality code (CR, DX, CT, ...), None for rasters
    frame: int  # 0-based
    frames: int  # frames in the file
    height: int
    width: int
    channels: int  # as stored: 1 or 3 (palette counts as 3), 2 or 4 with alpha
    bits: int  # stored bits a sample
    burned_in: bool | None  # DICOM BurnedInAnnotation; None: not said
    labels: tuple[str, ...] | None  # positive labels; () labelled but none positive; None unlabelled
    boxes: tuple[Box, ...] | None
    split: str | None
    private_location: str
    private_bytes: int  # size of the file's bytes


@dataclass(frozen=True, slots=True)
class Rejection:
    """One catalogued item that cannot be explained. stage: catalogue | decode | explain."""

    id: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """What a reader of the results must know. Of notes that differ in `number` alone, a run tells the largest."""

    text: str  # has one `{}` where the number goes, if there is one
    number: float | None = None

    def __str__(self) -> str:
        return self.text if self.number is None else self.text.format(f"{self.number:.2g}")
