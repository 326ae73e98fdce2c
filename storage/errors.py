"""One error tree, grouped by what a handler would do.

Every class passes its raw arguments to ``super().__init__`` so that the exception survives the
trip between processes: pickle rebuilds an exception by calling its class with ``args``.

No message may carry patient data: no name, patient id, UID, path or date of an image.
"""


class LucencyError(Exception):
    """Base of everything Lucency raises on purpose. The message ends the reader's search."""


class ConfigurationError(LucencyError):
    """What the user wrote cannot be run as written (exit code 2)."""


class ArchiveError(LucencyError):
    """The archive as a whole cannot be read: missing, refused, empty, a bomb (exit code 1)."""


class ModelError(LucencyError):
    """The classifier cannot be loaded or explained as asked (exit code 1)."""


class RunError(LucencyError):
    """The run directory is in the way: it belongs to another audit, or is locked (exit code 1)."""


class ImageError(LucencyError):
    """One image cannot be used. Becomes a rejection with this message as reason, never ends a run.

    The reason is read by people and published in reports: plain words, nothing of the patient.
    """
