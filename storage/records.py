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
    """One image (or one frame of a multi-frame file) of the archive, or one volume.

    Only the ``private_`` fields may identify a patient; they never leave the catalogue.
    The location is the path below the archive's root with ``/`` separators; ``!/`` steps into a
    container: ``2019/chest.zip!/a/b.dcm``.
    """

    id: str  # keyed HMAC of location and frame, 32 hex digits
    patient: str | None  # keyed HMAC of the patient id, 32 hex digits
    format: str  # dicom | png | jpeg | tiff | nifti
    modality: str | None  # DICOM modality code (CR, DX, CT, ...), None for rasters
    frame: int  # 0-based
    frames: int  # frames in the file
    depth: int  # slices of a volume, as decoded; of a multi-frame file, its frames; 1: an image
    height: int
    width: int
    channels: int  # as stored: 1 or 3 (palette counts as 3), 2 or 4 with alpha
    bits: int  # stored bits a sample
    spacing: tuple[float, ...] | None  # mm between rows and columns; of a volume, between slices, rows and columns
    burned_in: bool | None  # DICOM BurnedInAnnotation; None: not said
    labels: tuple[str, ...] | None  # positive labels; () labelled but none positive; None unlabelled
    boxes: tuple[Box, ...] | None
    split: str | None
    private_location: str  # of a series: of the first of its files by name
    private_bytes: int  # size of the file's bytes; of a series: of all
    private_slices: tuple[str, ...] | None  # locations of a series' files by position; None: one file


@dataclass(frozen=True, slots=True)
class Rejection:
    """One catalogued item that cannot be explained. stage: catalogue | split | decode | explain."""

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
