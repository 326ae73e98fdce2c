"""Names that say nothing: keyed hashes in place of locations and patients."""

import hmac
import os
import secrets
from dataclasses import dataclass, field
from typing import Self

from storage.documents import read_document
from storage.errors import ConfigurationError

_KEY_BYTES = 32
_FEWEST_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """HMAC-SHA256 under one secret key, cut to 128 bits: 32 hex digits.

    Two audits under the same key give the same ids, so that their cases can be joined; without the key an id
    leads back to nothing.
    """

    key: bytes = field(repr=False)

    @classmethod
    def load(cls, *, file: str | None = None, env: str | None = None) -> Self:
        """The key from a file or an environment variable, else a fresh one.

        Raises ConfigurationError when the key is missing or shorter than 16 bytes.
        """
        if file is not None:
            return cls._checked(read_document(file, "archive.key.file", limit=1 << 20).strip(), "archive.key.file")
        if env is not None:
            if env not in os.environ:
                raise ConfigurationError(f"archive.key.env: the environment variable {env} is not set")
            return cls._checked(os.fsencode(os.environ[env]).strip(), "archive.key.env")
        return cls(secrets.token_bytes(_KEY_BYTES))

    @classmethod
    def _checked(cls, key: bytes, where: str) -> Self:
        if len(key) < _FEWEST_KEY_BYTES:
            raise ConfigurationError(
                f"{where}: expected a secret of {_FEWEST_KEY_BYTES} bytes or more, got {len(key)}. "
                "`openssl rand -hex 32` makes one."
            )
        return cls(key)

    def image(self, location: str, frame: int = 0) -> str:
        """The id of one frame of one file."""
        return self._digest(b"image", location.encode("utf-8", "surrogatepass"), str(frame).encode())

    def patient(self, patient_id: bytes | str) -> str:
        """The id of a patient, from the bytes of the DICOM Patient ID or the text of a label file."""
        text = patient_id.encode("utf-8", "surrogatepass") if isinstance(patient_id, str) else patient_id
        return self._digest(b"patient", text.strip(b" \0"))

    def uid(self, uid: bytes) -> str:
        """The id of a DICOM UID, as written: of a series, or of a frame of reference. UIDs lead back to patients."""
        return self._digest(b"uid", uid.strip(b" \0"))

    def _digest(self, *parts: bytes) -> str:
        # Neither a location nor a Patient ID can hold a NUL, so joined parts are never ambiguous.
        return hmac.digest(self.key, b"\0".join(parts), "sha256").hex()[:32]
