"""The pass in front of all training: every image of the catalogue is decoded once and kept as it is learned from.

Hundreds of epochs then read a few kilobytes an image, and no network waits for a decoder.
"""

from dataclasses import replace

import pyarrow as pa
import ray
import torch

from storage.arrays import create_pixels
from storage.errors import LucencyError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from storage.tables import read_table
from tasks.preprocess import Preprocess
from workflows.cataloguing import decode_options, open_archive
from workflows.cluster import Placement
from workflows.commits import PixelCommit, guarded, packed, shard_result
from workflows.configuration import Archive, Engine
from workflows.images import Images
from workflows.passes import pass_rejections, run_pass
from workflows.pool import ModelPool
from workflows.progress import Progress
from workflows.shards import ShardReader
from workflows.survey import FACTS_COLUMNS, archive_facts
from workflows.work import Pass
from workflows.workers import ModelHost, rejections_of

STAGE = "pixels"


def store_pixels(
    run: Objects,
    archive: Archive,
    engine: Engine,
    *,
    stored: int,
    channels: int,
    placement: Placement,
    progress: Progress,
) -> frozenset[int]:
    """Bring every image of `catalogue.parquet` to `pixels.zarr`, uint8 [N, channels, stored, stored], in `run`.

    channels: 1 or 3. Returns the rows of those that cannot be decoded; `pass_rejections(run, "pixels")` has the
    reasons. The same call goes on with what was interrupted. Raises LucencyError when a store fails.
    """
    table = read_table(run, "catalogue.parquet", [*FACTS_COLUMNS, "id"])
    facts, shape = archive_facts(table), (channels, stored, stored)
    created = Ledger(run, f"{STAGE}-created")
    if 0 not in created.shards():
        create_pixels(run, facts.images, facts.shard_images, shape)
        created.commit(Manifest(created.stage, 0, 0))
    work = Pass(
        stage=STAGE,
        reader=ShardReader(run, open_archive(archive), decode_options(archive)),
        worker=PixelWorker,
        arguments=(shape,),
        commit=PixelCommit(run, facts.shard_images, facts.images),
        attempts=engine.attempts,
        shard_bytes=facts.shard_bytes,
    )
    progress.start(STAGE, facts.images)
    progress.advance(STAGE, sum(manifest.images for manifest in Ledger(run, STAGE).done().values()))
    with ModelPool(_on_cpus(placement)) as pool:
        run_pass(work, run, {shard: [] for shard in range(facts.shards)}, pool, progress)
    progress.finish(STAGE)
    rejected = {item.id for item in pass_rejections(run, STAGE)}
    kept = sum(manifest.images for manifest in Ledger(run, STAGE).done().values())
    if kept + len(rejected) != facts.images:
        raise LucencyError(
            f"{facts.images} images, but {kept} with pixels and {len(rejected)} rejected: an image was lost or counted "
            "twice. This is a fault of Lucency; the run is kept as it is."
        )
    pairs = zip(table["row"].to_pylist(), table["id"].to_pylist(), strict=True)
    return frozenset(row for row, identifier in pairs if row >= 0 and identifier in rejected)


def _on_cpus(placement: Placement) -> Placement:
    """Resizing needs no GPU, and so the same pictures come out wherever it is done."""
    if placement.device == "cpu":
        return placement
    cores = int(ray.cluster_resources().get("CPU", 1.0))
    return replace(placement, device="cpu", workers=max(1, cores // 2), threads=1, model={"num_cpus": 1.0})


class PixelWorker:
    """Decoded images -> [channels, H, W], whole, antialiased, uint8: an actor without a model."""

    def __init__(self, host: ModelHost, shape: tuple[int, int, int]) -> None:
        channels, *size = shape
        self._preprocess = Preprocess((size[0], size[1]), None, channels, (0.0,) * channels, (1.0,) * channels)

    def __call__(self, block: pa.Table) -> pa.Table:
        return guarded(self._compute, block)

    def _compute(self, block: pa.Table) -> pa.Table:
        images = Images.of(block, ())
        found = self._preprocess.picture(images.pixels, torch.device("cpu"))
        pixels = (found * 255).round().clamp(0, 255).to(torch.uint8).numpy()
        output = packed({"rows": images.rows, "pixels": pixels})
        return shard_result(images.shard, len(images.ids), output, rejections_of(images, {}), ())
