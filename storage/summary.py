"""What one image file says about itself, before any of its pixels is read."""

from dataclasses import dataclass, field


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
    patient: bytes | None = field(default=None, repr=False)  # the Patient ID as written; goes no further than its HMAC
