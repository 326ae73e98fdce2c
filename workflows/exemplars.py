"""The few images that the report shows: of a class, the most, the middle and the least confident."""

import io
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from storage.errors import LucencyError
from storage.objects import Objects
from storage.tables import read_table
from tasks.cams.names import MethodName
from tasks.explain import ExplainSettings, explain_shard
from tasks.profile import Profile
from workflows.configuration import Configuration
from workflows.images import Images
from workflows.shards import ShardReader
from workflows.survey import LoadedModel

_KEY = ".ledger/exemplars.npz"
_CLASSES = 6
_KINDS = ("most", "middle", "least")


def write_exemplars(
    run: Objects, configuration: Configuration, model: LoadedModel, reader: ShardReader, profile: Profile
) -> None:
    """Keep pictures and raw maps of the exemplars, so that a report needs neither archive nor model.

    Pictures are patient pixels. They are left out by `report.pictures: false`, and images whose header says that
    text is burned in are passed over.
    """
    chosen = _choose(run, configuration) if configuration.report.pictures else []
    base = MethodName.parse(configuration.explain.methods[0]).base
    asked = configuration.explain.limits
    limits = profile.limits(base, source=asked.source, low=asked.low, high=asked.high)
    shown = [_explain(case, MethodName(base), limits, model, reader) for case in chosen]
    classes = np.array([case["class"] for case in chosen], np.int32)
    height, width = model.description.input
    sink = io.BytesIO()
    np.savez_compressed(
        sink,
        row=np.array([case["row"] for case in chosen], np.int64),
        id=np.array([case["id"] for case in chosen], "U32"),
        **{"class": classes},  # type: ignore[arg-type]  # numpy's stub takes any keyword for allow_pickle
        kind=np.array([case["kind"] for case in chosen], "U6"),
        probability=np.array([case["probability"] for case in chosen], np.float32),
        label=np.array([-1 if case["label"] is None else case["label"] for case in chosen], np.int8),
        picture=np.stack([item[0] for item in shown]) if shown else np.zeros((0, height, width, 3), np.uint8),
        cam=np.stack([item[1] for item in shown]) if shown else np.zeros((0, *model.description.native), np.float32),
        base=np.array(base),
        limits=limits[classes],
    )
    run.put(_KEY, sink.getvalue())


def _choose(run: Objects, configuration: Configuration) -> list[dict[str, Any]]:
    """Cases to show, ordered by class and falling confidence; ties go to the lower row."""
    cases = read_table(run, "cases.parquet", ["id", "row", "class", "probability", "label", "predicted"])
    cases = cases.filter(cases["predicted"]) if cases["predicted"].to_numpy().any() else cases
    cases = cases.join(read_table(run, "catalogue.parquet", ["id", "shard", "burned_in"]), "id")
    if not configuration.report.burned_in:
        cases = cases.filter(pc.invert(pc.fill_null(cases["burned_in"], False)))
    counts = Counter(cases["class"].to_pylist())
    frequent = sorted(counts, key=lambda index: (-counts[index], index))[:_CLASSES]
    chosen: list[dict[str, Any]] = []
    for index in sorted(frequent):
        rows = cases.filter(pc.equal(cases["class"], index)).to_pylist()
        rows.sort(key=lambda row: (-row["probability"], row["row"]))
        places = dict.fromkeys([0, len(rows) // 2, len(rows) - 1])
        kinds = _KINDS if len(places) == len(_KINDS) else ("most", "least")
        chosen += [{**rows[place], "kind": kind} for place, kind in zip(places, kinds, strict=False)]
    return chosen


def _explain(
    case: dict[str, Any], method: MethodName, limits: np.ndarray[Any, Any], model: LoadedModel, reader: ShardReader
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Picture [H, W, 3] uint8 as the model sees it, and signed native map [h, w] of the case's class."""
    images = Images.of(reader.read(case["shard"], only=[case["id"]]), model.classifier.classes)
    if not images.ids:
        raise LucencyError(f"image {case['id']} was explained and cannot be read any more: did the archive change?")
    settings = ExplainSettings(methods=(method,), targets=(case["class"],), batch=1)
    done = explain_shard(
        model.classifier, images.pixels, images.truth, settings, limits={method.base: limits}, masks={}
    )
    picture = model.classifier.preprocess.picture(images.pixels, torch.device("cpu"))[0]
    rgb = (picture.expand(3, -1, -1) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return rgb, done.maps[str(method)][0, 0].astype(np.float32)
