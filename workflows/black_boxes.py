"""Models that only answer: TorchScript programs, ONNX graphs, served models. Nothing inside can be looked at."""

import hashlib
import io
import os
import tempfile
import warnings
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from storage.errors import ModelError
from tasks.answers import are_shares, logits_of
from workflows import configuration
from workflows.open_inference import Endpoint, find_endpoint
from workflows.served import Served

_KINDS = {
    "torchscript": "a TorchScript model",
    "onnx": "an ONNX model",
    "http": "a served model",
    "https": "a served model",
}
# What ONNX calls its tensors of real numbers, and numpy.
_REALS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def black_box(source: str) -> str | None:
    """What sentences call a source whose model only answers; None for all others."""
    return _KINDS.get(source.partition(":")[0])


@dataclass(frozen=True, slots=True)
class Answering:
    """How a black box answers. kind: of the source; output: logits | probabilities; name: of the output that holds
    them, where there are several; endpoint: of a served model."""

    kind: str
    output: str
    name: str | None
    endpoint: Endpoint | None


def how_it_answers(model: configuration.Model) -> Answering:
    """Find out what there is to know before the model is fetched. Raises ModelError, ConfigurationError."""
    kind = model.source.partition(":")[0]
    if kind == "torchscript" and model.trust != "pickle":
        raise ModelError(
            "model.source: a TorchScript file can run any code of its author while it is opened and when it is asked. "
            "If you trust who made it with running code on this machine, set `model.trust: pickle`; an ONNX file "
            "needs no such trust."
        )
    endpoint = find_endpoint(model) if kind in ("http", "https") else None
    return Answering(kind, model.output, model.output_name, endpoint)


class Asked(Protocol):
    """What is asked. shape: of its input, batch first, None where it takes any or does not say. digest: SHA-256 of
    what it is; runtime: what answers, in words."""

    shape: tuple[int | None, ...] | None
    digest: str
    runtime: str

    def __call__(self, images: Tensor) -> Any:
        """Normalised images [B,channels,*size] to answers [B,C]."""
        ...


class BlackBox(nn.Module):
    """Images [B,channels,*size] in, logits [B,C] out; no parameters, no modules, no graph."""

    def __init__(self, asked: Asked, *, output: str, task: str) -> None:
        super().__init__()
        self.asked = asked
        self._output = output
        self._task = task

    def forward(self, images: Tensor) -> Tensor:
        alone = self.asked.shape is not None and self.asked.shape[0] == 1
        answers = [self.asked(part) for part in (images.split(1) if alone else (images,))]
        if not all(isinstance(answer, Tensor) for answer in answers):
            raise ModelError(f"the model puts out a {type(answers[0]).__name__}; expected one tensor [batch, classes].")
        joined = torch.cat(answers).to(images.device)
        return logits_of(joined, self._task) if self._output == "probabilities" else joined

    def check_input(self, example: Tensor) -> None:
        """Raise ModelError where the model says that it wants images of another shape."""
        declared = self.asked.shape
        if declared is None:
            return
        wanted, got = _sizes(declared[1:]), list(example.shape[1:])
        if len(declared) != example.ndim or any(
            want not in (None, have) for want, have in zip(wanted, got, strict=True)
        ):
            shown = [side or "any" for side in _sizes(declared)]
            raise ModelError(
                f"model.input: the model wants a batch, channels and sides of {shown}, and is given images of {got}. "
                "Set model.input to what it was trained on; channels must come before the sides."
            )
        if declared[0] not in (None, 1):
            raise ModelError(
                f"model.source: the model takes {declared[0]} images at a time, no more and no fewer. Export it with a "
                "batch axis of any length, or of 1."
            )

    def check_answers(self, logits: Tensor) -> None:
        """Raise ModelError where what should be logits [B,C] cannot be."""
        if self._output == "logits" and self._task == "one-label" and are_shares(logits):
            raise ModelError(
                "model.output: an image's answers add up to 1, so they are probabilities and no logits. "
                "Set `model.output: probabilities`."
            )


def _sizes(shape: tuple[int | None, ...]) -> list[int | None]:
    return list(shape)


def make_black_box(data: bytes | None, answering: Answering, task: str, device: torch.device) -> BlackBox:
    """The model on `device`, ready to be asked. data: of its file, where it is one. Raises ModelError."""
    asked: Asked
    if answering.endpoint is not None:
        asked = Served(answering.endpoint)
    elif answering.kind == "onnx":
        asked = Onnx(data or b"", answering.name, device)
    else:
        asked = Scripted(data or b"", device)
    return BlackBox(asked, output=answering.output, task=task)


class Scripted:
    """A TorchScript program. It runs as it is written: torch's optimiser rounds otherwise once it knows the shapes."""

    shape: tuple[int | None, ...] | None = None
    runtime = "TorchScript"

    def __init__(self, data: bytes, device: torch.device) -> None:
        self.digest = hashlib.sha256(data).hexdigest()
        try:
            with warnings.catch_warnings():
                # TorchScript has a successor, which `export:` reads; archives of it will be there for years.
                warnings.filterwarnings("ignore", "`torch.jit.load` is", FutureWarning)
                self._program = torch.jit.load(io.BytesIO(data), map_location=device)
        except Exception as error:  # torch raises anything here for a file it does not know
            raise ModelError(
                f"model.source: the TorchScript program cannot be opened: {type(error).__name__}. Write it with "
                f"torch.jit.save, of a torch near {torch.__version__}, and not after optimize_for_inference."
            ) from error
        self._program.eval()

    def __call__(self, images: Tensor) -> Any:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]  # missing from torch's own list
            return self._program(images)


class Onnx:
    """An ONNX graph in ONNX Runtime, on as many threads as torch has."""

    runtime = "ONNX Runtime"
    shape: tuple[int | None, ...] | None

    def __init__(self, data: bytes, output: str | None, device: torch.device) -> None:
        self.digest = hashlib.sha256(data).hexdigest()
        self._session = _session(data, device)
        self._input = _only("input", self._session.get_inputs(), None)
        self._output = _only("output", self._session.get_outputs(), output)
        self.shape = tuple(side if isinstance(side, int) else None for side in self._input.shape)

    def __call__(self, images: Tensor) -> Tensor:
        pixels = images.detach().cpu().contiguous().numpy().astype(_REALS[self._input.type], copy=False)
        try:
            (answer,) = self._session.run([self._output.name], {self._input.name: pixels})
        except Exception as error:  # its classes are its own, and say so in words only
            if "allocate memory" in str(error) or "out of memory" in str(error):
                raise torch.OutOfMemoryError(str(error)) from error
            raise
        return torch.from_numpy(np.array(answer, np.float32))


def _session(data: bytes, device: torch.device) -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read as the library loads: it would tell its makers of each session
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError(
            "model.source: onnx models need ONNX Runtime, which is not installed. pip install 'lucency[onnx]', or "
            "onnxruntime-gpu for its GPU build."
        ) from error
    onnxruntime.disable_telemetry_events()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # float32 means float32 here too.
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # fatal; exceptions say the rest
    options.add_session_config_entry("session.load_model_format", "ONNX")
    with tempfile.TemporaryDirectory(prefix="lucency-onnx-") as nothing:
        # A graph may name files that hold its weights, wherever they lie; it finds none.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", nothing)
        try:
            return onnxruntime.InferenceSession(data, options, providers=providers)
        except Exception as error:
            reason = _reason(error, nothing)
            raise ModelError(f"model.source: ONNX Runtime cannot open the model: {reason}") from error


def _reason(error: Exception, nothing: str) -> str:
    """Why there is no session. nothing: the folder in which files were looked for."""
    if "external" in str(error).lower() or nothing in str(error):
        return (
            "its weights lie in another file. Only what is in the file itself has a digest and reaches the workers: "
            "save it as one file (onnx.save without save_as_external_data)."
        )
    return f"{type(error).__name__}. Is it an ONNX file, and of a version that this ONNX Runtime knows?"


def _only(what: str, found: Any, name: str | None) -> Any:
    """The one tensor of real numbers among a session's inputs or outputs, or the one of that name."""
    chosen = [item for item in found if name in (None, item.name)]
    if len(chosen) != 1:
        names = ", ".join(repr(item.name) for item in found)
        key = " Choose one in model.output_name." if what == "output" else ""
        raise ModelError(
            f"model.source: expected one {what}{f' {name!r}' if name else ''}; the model has {names}.{key}"
        )
    if chosen[0].type not in _REALS:
        raise ModelError(
            f"model.source: {what} {chosen[0].name!r} is a {chosen[0].type}; expected a tensor of real numbers."
        )
    return chosen[0]
