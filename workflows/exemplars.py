"""The few images that the report shows: of a class, the most, the middle and the least confident."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from storage.catalogue import shard_images
from storage.objects import Objects
from storage.tables import read_group, read_table
from tasks.cams.names import MethodName
from tasks.cams.scaling import resized
from tasks.explain import ExplainSettings, explain_shard
from tasks.methods import Method
from workflows.configuration import Configuration
from workflows.images import as_seen, read_again
from workflows.planes import highest, three_planes
from workflows.shards import ShardReader
from workflows.survey import LoadedModel

_KEY = ".ledger/exemplars.npz"
_CLASSES = 6
_KINDS = ("most", "middle", "least")


@dataclass(frozen=True, slots=True)
class _Shown:
    """picture uint8 [H,W,3] as the model sees it, cam float32 [h,w]: signed, native; of a volume three planes of each
    through the map's highest place, the cam at the picture's size. above: share of the map over the high limit."""

    picture: np.ndarray[Any, Any]
    cam: np.ndarray[Any, Any]
    above: float


@dataclass(frozen=True, slots=True)
class _Case:
    """One image and class that the report shows. kind: most | middle | least confident."""

    id: str
    row: int
    shard: int
    category: int
    kind: str
    probability: float
    label: bool | None


def write_exemplars(
    run: Objects,
    configuration: Configuration,
    model: LoadedModel,
    reader: ShardReader,
    limits: Mapping[str, np.ndarray[Any, Any]],
    rules: Mapping[str, Method],
) -> None:
    """Keep pictures and raw maps of the exemplars, so that a report needs neither archive nor model.

    They show the first of the cheapest methods that have a common scale, limits [C,2] by base. Pictures are patient
    pixels: they are left out by `report.pictures: false`, and images whose header says that text is burned in are
    passed over.
    """
    rules = {base: rules[base] for base in limits}
    chosen = _choose(run, burned_in=configuration.report.burned_in) if configuration.report.pictures and rules else []
    if not chosen:
        run.delete(_KEY)
        return
    base = min(rules, key=lambda name: rules[name].forwards(model.description.features, model.description.head))
    shown = [_explain(case, base, rules, limits[base], model, reader) for case in chosen]
    classes = np.array([case.category for case in chosen], np.int32)
    sink = io.BytesIO()
    np.savez_compressed(
        sink,
        row=np.array([case.row for case in chosen], np.int64),
        id=np.array([case.id for case in chosen], "U32"),
        **{"class": classes},  # type: ignore[arg-type]  # numpy's stub takes any keyword for allow_pickle
        kind=np.array([case.kind for case in chosen], "U6"),
        probability=np.array([case.probability for case in chosen], np.float32),
        label=np.array([-1 if case.label is None else case.label for case in chosen], np.int8),
        picture=np.stack([one.picture for one in shown]),
        cam=np.stack([one.cam for one in shown]),
        above=np.array([one.above for one in shown], np.float32),
        base=np.array(base),
        limits=limits[base][classes],
    )
    run.put(_KEY, sink.getvalue())


def _choose(run: Objects, *, burned_in: bool) -> list[_Case]:
    """Cases to show, ordered by class and falling confidence; ties go to the lower row."""
    cases = read_table(run, "cases.parquet", ["row", "class", "probability", "label", "predicted"])
    rows, classes, probability = (cases[name].to_numpy() for name in ("row", "class", "probability"))
    shown = cases["predicted"].to_numpy()
    shown = shown if shown.any() else np.ones(len(rows), bool)
    catalogue = read_table(run, "catalogue.parquet", ["burned_in"])  # row r lies at place r
    if not burned_in:
        shown = shown & ~pc.fill_null(catalogue["burned_in"], False).to_numpy()[rows]
    counts = np.bincount(classes[shown])
    frequent = sorted(np.flatnonzero(counts).tolist(), key=lambda index: (-counts[index], index))[:_CLASSES]
    chosen: list[_Case] = []
    for index in sorted(frequent):
        places = np.flatnonzero(shown & (classes == index))
        places = places[np.lexsort((rows[places], -probability[places]))]
        ranks = dict.fromkeys([0, len(places) // 2, len(places) - 1])
        kinds = _KINDS if len(ranks) == len(_KINDS) else ("most", "least")
        for rank, kind in zip(ranks, kinds, strict=False):
            place = int(places[rank])
            shard, position = divmod(int(rows[place]), shard_images(catalogue))
            chosen.append(
                _Case(
                    id=read_group(run, "catalogue.parquet", shard, ["id"])["id"][position].as_py(),
                    row=int(rows[place]),
                    shard=shard,
                    category=index,
                    kind=kind,
                    probability=float(probability[place]),
                    label=cases["label"][place].as_py(),
                )
            )
    return chosen


def _explain(
    case: _Case,
    base: str,
    rules: Mapping[str, Method],
    limits: np.ndarray[Any, Any],
    model: LoadedModel,
    reader: ShardReader,
) -> _Shown:
    images = read_again(reader, case.shard, [case.id], model.classifier.classes)
    settings = ExplainSettings(methods=(MethodName(base),), targets=(case.category,), batch=1, rules=rules)
    done = explain_shard(
        model.classifier,
        images.pixels,
        images.ids,
        images.truth,
        settings,
        limits={base: limits},
        masks={},
        spacings=images.spacing,
    )
    native = done.maps[base][0, 0].astype(np.float32)
    picture = as_seen(images.pixels[0], model.classifier.preprocess)
    whole = resized(torch.from_numpy(native)[None, None], picture.shape[:-1])[0, 0].numpy()
    low, high = limits[case.category]
    above = float((whole > high).mean())
    if native.ndim == 2:
        return _Shown(picture, native, above)
    at = highest(whole)
    return _Shown(three_planes(picture, at, 0), three_planes(whole, at, low), above)
