"""Exported programs (.pt2), unflattened so that forward hooks work.

torch.export.load would unpickle whatever the file holds and evaluate its symbolic sizes as Python. Unless the
configuration trusts the file with that, only files are opened whose every record is tensor bytes, plain tensors
or graph, and whose sizes are arithmetic. The graph itself is still a program: take it from someone you trust.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from storage.errors import ModelError

_PLAIN_RECORDS = re.compile(
    r"""[^/]+/(?:
        data/weights/(?:model\.pt|weight_\d+|[^/]+_weights_config\.json)
        |data/constants/(?:model\.pt|tensor_\d+|[^/]+_constants_config\.json)
        |data/sample_inputs/[^/]+\.pt
        |models/[^/]+\.json
        |extra/[^/]+
        |\.data/[a-z_]+|archive_format|archive_version|byteorder
    )""",
    re.VERBOSE,
)
_GRAPHS = re.compile(r"[^/]+/models/[^/]+\.json")
_WORDS = re.compile(r"\b[^\W\d]\w*")
_ARITHMETIC = re.compile(
    r"""[su]\d+|Symbol|Integer|Float|Rational|Add|Mul|Pow|Abs|Min|Max|Mod|FloorDiv|CeilDiv|CleanDiv|PythonMod
        |ModularIndexing|IntTrueDiv|FloatTrueDiv|PowByNatural|FloatPow|CeilToInt|FloorToInt|TruncToInt|TruncToFloat
        |RoundToInt|ToFloat|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|StrictLessThan|LessThan|StrictGreaterThan
        |GreaterThan|And|Or|Not|Where|True|False|positive|negative|nonnegative|integer|real|precision""",
    re.VERBOSE,
)


def load_exported(data: bytes, device: torch.device, *, trust: str) -> nn.Module:
    """The program's modules under their old names, on `device`. Raises ModelError."""
    if trust != "pickle":
        _check_plain(data)
    try:
        with _pickle_refused(trust != "pickle"):
            program = torch.export.load(io.BytesIO(data))
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        module: nn.Module = torch.export.unflatten(program)
    except Exception as error:  # torch raises anything here, down to KeyError, for a file it does not know
        raise ModelError(
            f"the exported program cannot be opened: {type(error).__name__}. Write it with torch.export.save, "
            f"of a torch near {torch.__version__}."
        ) from error
    return module


def _check_plain(data: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            strange = [name for name in archive.namelist() if not _PLAIN_RECORDS.fullmatch(name)]
            graphs = [json.loads(archive.read(name)) for name in archive.namelist() if _GRAPHS.fullmatch(name)]
    except (zipfile.BadZipFile, ValueError) as error:
        raise ModelError("the exported program is not a file written by torch.export.save.") from error
    if strange:
        raise ModelError(
            f"the exported program holds {len(strange)} record(s) that are neither tensors nor graph, like "
            f"{strange[0]!r}. If you trust who made it with running code on this machine, set `model.trust: pickle`."
        )
    if not all(_is_arithmetic(size) for graph in graphs for size in _symbolic_sizes(graph)):
        raise ModelError(
            "the exported program computes a size with more than arithmetic. If you trust who made it with "
            "running code on this machine, set `model.trust: pickle`."
        )


def _symbolic_sizes(node: Any) -> Iterator[Any]:
    """Every expression that torch evaluates on load, from anywhere in the graph's JSON."""
    if isinstance(node, dict):
        if "expr_str" in node:
            yield node["expr_str"]
        for value in node.values():
            yield from _symbolic_sizes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _symbolic_sizes(value)


def _is_arithmetic(expression: Any) -> bool:
    return isinstance(expression, str) and all(_ARITHMETIC.fullmatch(word) for word in _WORDS.findall(expression))


@contextmanager
def _pickle_refused(refused: bool) -> Iterator[None]:
    """Inside, torch.load takes plain tensors only, also where torch.export asks it for more."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    if refused:
        os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = before
