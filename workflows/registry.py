"""Models of an MLflow registry, and other files that were logged as artifacts."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import ConfigurationError, ModelError

_EXPORTED, _PICKLED = "data/model.pt2", "data/model.pth"  # where mlflow.pytorch puts the model


def fetch_registered(uri: str, *, server: str | None, trust: str) -> tuple[str, bytes]:
    """Download a model like `models:/NAME@ALIAS`; returns what it is (`export` or `pickle`) and the file's bytes.

    `server` is the MLflow server or database; none: the one MLflow is set to (MLFLOW_TRACKING_URI).
    Raises ModelError when it cannot be had, is no PyTorch model, or needs pickle and is not trusted with it.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="lucency-model-") as scratch, _tracked_at(server):
        try:
            found = mlflow.artifacts.download_artifacts(uri, dst_path=scratch)
        except (MlflowException, OSError) as error:
            raise ModelError(
                f"model.source: {uri} cannot be had from MLflow: {type(error).__name__}. "
                "Are the name, the version or alias, and mlflow.uri right?"
            ) from error
        exported, pickled = Path(found, _EXPORTED), Path(found, _PICKLED)
        if exported.is_file():
            return "export", exported.read_bytes()
        if not pickled.is_file():
            raise ModelError(f"model.source: {uri} is not a PyTorch model logged with mlflow.pytorch.log_model.")
        if trust != "pickle":
            raise ModelError(
                f"model.source: {uri} was logged with pickle. Log it with serialization_format='pt2', or, if you "
                "trust who made it with running code on this machine, set `model.trust: pickle`."
            )
        return "pickle", pickled.read_bytes()


def fetch_artifact(uri: str, *, where: str, server: str | None) -> bytes:
    """A file like `runs:/ID/memory.pt`, named under the key `where`. Raises ConfigurationError."""
    import mlflow
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory(prefix="lucency-artifact-") as scratch, _tracked_at(server):
        try:
            found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=scratch))
        except (MlflowException, OSError) as error:
            raise ConfigurationError(
                f"{where}: {uri} cannot be had from MLflow: {type(error).__name__}. Are the run, the path of the file "
                "in it, and mlflow.uri right?"
            ) from error
        if not found.is_file():
            raise ConfigurationError(f"{where}: {uri} is not a file; name the file itself, as in runs:/ID/memory.pt")
        return found.read_bytes()


@contextmanager
def _tracked_at(server: str | None) -> Iterator[None]:
    """MLflow looks aliases up at the server of the process, whatever server a call names; so it is set for a while."""
    import mlflow

    if server is None:
        yield
        return
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(server)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it
