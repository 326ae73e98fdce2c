"""The stage of an audit that checks the explanations themselves, on a few images, after the maps."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from storage.errors import LucencyError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from storage.tables import read_table
from tasks.cams.names import MethodName
from tasks.explain import ExplainSettings
from tasks.methods import placed
from tasks.sanity import Checked, Sample, SanitySettings, check_sanity
from workflows.configuration import Configuration
from workflows.configuration_measures import Measures
from workflows.images import Images
from workflows.judging import further_forwards, sanity_settings
from workflows.models import ModelPackage, build_classifier
from workflows.passes import pass_rejections
from workflows.pool import ModelPool
from workflows.progress import Progress
from workflows.sanity_results import KEY, SanityResults
from workflows.scales import Scales
from workflows.shards import ShardReader
from workflows.survey import LoadedModel
from workflows.workers import ModelHost

STAGE = "sanity"


def run_sanity(
    run: Objects,
    configuration: Configuration,
    model: LoadedModel,
    settings: ExplainSettings,
    scales: Scales,
    reader: ShardReader,
    pool: ModelPool,
    progress: Progress,
) -> dict[str, Any]:
    """Make the checks once, write sanity.json, and return the costs of each variant for run.json: forwards, and seconds
    of one map alone on the device of the passes.

    An image that fails is left out and counted, and so is a check that cannot be made. Where a node or process was
    lost, which tells nothing of the check, the ledger has no entry: an audit that goes on tries again.
    """
    ledger, asked = Ledger(run, STAGE), configuration.measures.sanity
    if not asked.checks:
        run.delete(KEY)
        return {}
    if 0 not in ledger.done():
        try:
            checked, rejected = _answer(run, configuration, model, settings, scales, reader, pool)
            found, seconds = SanityResults.of(checked, rejected, asked), checked.seconds
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, LucencyError):  # the archive or the model, which a user can put right
                raise cause from None
            if isinstance(cause, RayError):
                reason = f"the process that makes it dies ({type(cause).__name__})"
                run.put(KEY, SanityResults.without(reason, asked).to_json())
                return {}
            found, seconds = SanityResults.without(f"failed unexpectedly ({type(cause).__name__})", asked), {}
        outputs = {"found": found.to_json(), "costs": json.dumps(_costs(settings, model, seconds)).encode()}
        ledger.commit(Manifest(STAGE, 0, found.images), outputs)
        progress.advance(STAGE, found.images)
    run.put(KEY, ledger.output(0, "found"))
    costs: dict[str, Any] = json.loads(ledger.output(0, "costs"))
    return costs


def _answer(
    run: Objects,
    configuration: Configuration,
    model: LoadedModel,
    settings: ExplainSettings,
    scales: Scales,
    reader: ShardReader,
    pool: ModelPool,
) -> tuple[Checked, int]:
    """What the cluster finds: the checks, and how many images could not be read again."""
    measures = configuration.measures
    work = _Work(settings, scales.masks, sanity_settings(measures))
    decode: Any = ray.remote(ShardReader.read).options(num_cpus=pool.placement.decode_cpus, max_retries=3)
    blocks = [decode.remote(reader, shard, only=ids) for shard, ids in drawn_images(run, measures).items()]
    permuted = None if model.permuted is None else ray.put(model.permuted)
    found: tuple[Checked, int] = pool.run_alone(configuration.engine.attempts, _check, ray.put(work), permuted, *blocks)
    return found


def drawn_images(run: Objects, measures: Measures) -> dict[int, list[str]]:
    """Ids of explained images, by shard: which they are follows from the seed and the ids alone."""
    rejected = {item.id for stage in ("profile", "maps") for item in pass_rejections(run, stage)}
    table = read_table(run, "catalogue.parquet", ["id", "shard"])
    shards = {
        name: shard
        for name, shard in zip(table["id"].to_pylist(), table["shard"].to_pylist(), strict=True)
        if shard >= 0 and name not in rejected
    }

    def place(name: str) -> bytes:
        return hashlib.sha256(f"{measures.seed}|sanity|{name}".encode()).digest()

    chosen: dict[int, list[str]] = {}
    for name in sorted(shards, key=place)[: measures.sanity.images]:
        chosen.setdefault(shards[name], []).append(name)
    return dict(sorted(chosen.items()))


def _costs(settings: ExplainSettings, model: LoadedModel, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Principal features cost nothing beside all: a variant's costs are those of its base method."""
    found = {}
    for method in settings.methods:
        if method.base in seconds:
            forwards = 1 + further_forwards(settings.rules, [method.base], model.description, 1)
            variant = str(MethodName(method.base, selected=method.selected))
            found[variant] = {"forwards": forwards, "seconds": seconds[method.base]}
    return found


@dataclass(frozen=True, slots=True)
class _Work:
    """What is checked. masks: by base method."""

    settings: ExplainSettings
    masks: Mapping[str, Any]
    asked: SanitySettings


def _check(host: ModelHost, work: _Work, permuted: ModelPackage | None, *blocks: pa.Table) -> tuple[Checked, int]:
    """The checks, and how many images could not be read again."""
    classifier = host.classifier
    other = None if permuted is None else build_classifier(permuted, host.device)
    every = [Images.of(block, classifier.classes) for block in blocks]
    sample = Sample(
        [image for images in every for image in images.pixels],
        [name for images in every for name in images.ids],
        [spacing for images in every for spacing in images.spacing],
    )
    settings = replace(work.settings, rules=placed(work.settings.rules, torch.device(host.device)))
    checked = check_sanity(classifier, sample, settings, work.asked, masks=work.masks, permuted=other)
    return checked, sum(len(images.rejected) for images in every)
