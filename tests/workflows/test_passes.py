"""A pass over small shards on a real Ray: what is lost is begun anew, counted, bounded, or ends the pass in words."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from storage.errors import ArchiveError, LucencyError
from storage.ledger import Ledger
from storage.objects import Objects
from storage.tables import write_table
from tests.small_audits import write_archive
from tests.workflows.small_passes import (
    Dying,
    Failing,
    Idle,
    Slow,
    TellingReader,
    Unmade,
    Unreachable,
    dying,
    process,
    under_way,
)
from workflows import passes
from workflows.cataloguing import build_catalogue, decode_options, open_archive
from workflows.cluster import place
from workflows.commits import ProfileCommit
from workflows.configuration import Archive, Engine
from workflows.pool import ModelPool
from workflows.progress import SilentProgress
from workflows.shards import ShardReader
from workflows.work import Pass

_IMAGES, _SHARD, _SHARDS = 12, 2, 6


class _Counting(SilentProgress):
    def __init__(self) -> None:
        self.images = 0

    def advance(self, stage: str, count: int = 1) -> None:
        self.images += count


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, _IMAGES)
    return folder / "archive"


@pytest.fixture(scope="module")
def pool(shared_ray: None) -> Iterator[ModelPool]:
    """One actor, without a model."""
    with ModelPool(place(Engine(workers=1))) as pool:
        yield pool


@pytest.fixture
def run(archive: Path, tmp_path: Path, shared_ray: None) -> Objects:
    run = Objects(str(tmp_path / "run"))
    table = build_catalogue(
        Archive(location=str(archive)), shard_images=_SHARD, shard_bytes=1 << 29, progress=SilentProgress()
    ).table
    write_table(run, "catalogue.parquet", table, group_rows=_SHARD)
    return run


def _pass(run: Objects, archive: Path, worker: type, *arguments: Any, **given: Any) -> Pass:
    settings = Archive(location=str(archive))
    reader = ShardReader(run, open_archive(settings), decode_options(settings))
    return Pass(
        **{
            "stage": "profile",
            "reader": TellingReader(reader, Path(run.location).parent),
            "worker": worker,
            "arguments": arguments,
            "commit": ProfileCommit(run),
            "attempts": 2,
            "shard_bytes": 1,
            **given,
        }
    )


def _run(work: Pass, run: Objects, pool: ModelPool) -> int:
    """Returns the images that progress was told of."""
    progress = _Counting()
    passes.run_pass(work, run, dict.fromkeys(range(_SHARDS), ()), pool, progress)
    assert Ledger(run, work.stage).shards() == list(range(_SHARDS))
    return progress.images


def _no_search(*_: Any) -> list[Any]:
    raise AssertionError("nothing is to be searched")


def test_a_shard_whose_process_dies_is_begun_as_often_as_asked(
    run: Objects, archive: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "find_killers", _no_search)
    work = _pass(run, archive, Dying, tmp_path, 2, attempts=3)
    assert _run(work, run, pool) == _IMAGES
    assert len(list(tmp_path.glob("death-*"))) == 2


def test_a_shard_that_dies_as_often_as_asked_is_searched_and_then_done(
    run: Objects, archive: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def search(work: Pass, shard: int, skip: Any, given: ModelPool) -> list[Any]:
        searched.append(shard)
        return []

    monkeypatch.setattr(passes, "find_killers", search)
    work = _pass(run, archive, Dying, tmp_path, 1, attempts=1)
    assert _run(work, run, pool) == _IMAGES
    assert 2 in searched
    assert len(searched) <= 3  # with those that its process had before it, at most


def test_a_fault_of_the_model_ends_the_pass_in_its_words(run: Objects, archive: Path, pool: ModelPool) -> None:
    with pytest.raises(LucencyError, match=r"^profile: shard 2 failed: ValueError: no such cell \(small_passes\.py:"):
        passes.run_pass(_pass(run, archive, Failing), run, dict.fromkeys(range(_SHARDS), ()), pool, SilentProgress())
    assert 2 not in Ledger(run, "profile").shards()


def test_what_a_stage_cannot_make_ends_the_pass_in_its_words(run: Objects, archive: Path, pool: ModelPool) -> None:
    with pytest.raises(LucencyError, match=r"^profile: shard \d failed: MemoryError: no room for the scales"):
        passes.run_pass(_pass(run, archive, Unmade), run, dict.fromkeys(range(_SHARDS), ()), pool, SilentProgress())


def test_an_archive_that_is_gone_ends_the_pass_in_its_words_and_is_not_searched(
    run: Objects, archive: Path, pool: ModelPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "find_killers", _no_search)
    work = _pass(run, archive, Idle, attempts=3)
    gone = replace(work, reader=Unreachable(work.reader.reader, tmp_path))  # type: ignore[attr-defined, arg-type]
    with pytest.raises(ArchiveError, match=r"^the archive does not answer$"):
        passes.run_pass(gone, run, dict.fromkeys(range(_SHARDS), ()), pool, SilentProgress())


def test_work_that_ends_its_process_is_begun_as_often_as_asked(pool: ModelPool, tmp_path: Path) -> None:
    assert pool.run_alone(3, dying, tmp_path, 2) == "alive"
    with pytest.raises(RayActorError):
        pool.run_alone(1, dying, tmp_path, 3)
    assert pool.run_alone(1, dying, tmp_path, 0) == "alive"


def test_processes_that_cannot_begin_end_the_pass_in_words(run: Objects, archive: Path, shared_ray: None) -> None:
    with (
        ModelPool(place(Engine(workers=1)), ray.put("no package")) as broken,  # type: ignore[arg-type]
        pytest.raises(LucencyError, match=r"profile: Ray could not go on \(ActorDiedError\).*can be resumed"),
    ):
        passes.run_pass(_pass(run, archive, Idle), run, dict.fromkeys(range(_SHARDS), ()), broken, SilentProgress())


@pytest.mark.parametrize(
    ("shard_bytes", "patience", "bounds"), [(1 << 60, 0.3, range(1, 3)), (1, 600.0, range(3, _SHARDS + 1))]
)
def test_what_is_under_way_is_bounded_by_the_room_for_decoded_shards(
    run: Objects, archive: Path, pool: ModelPool, tmp_path: Path, shard_bytes: int, patience: float, bounds: range
) -> None:
    work = _pass(run, archive, Slow, tmp_path, _SHARDS, patience, shard_bytes=shard_bytes)
    assert _run(work, run, pool) == _IMAGES
    assert under_way(tmp_path) in bounds


def test_stages_share_a_process_and_each_has_a_worker_of_its_own(run: Objects, archive: Path, pool: ModelPool) -> None:
    assert _run(_pass(run, archive, Idle), run, pool) == _IMAGES
    ledger = Ledger(run, "profile")
    made = {bytes(ledger.output(shard, "npz")) for shard in ledger.shards()}
    assert made == {pool.run_alone(1, process)}
    with pytest.raises(LucencyError, match="no such cell"):
        passes.run_pass(
            _pass(run, archive, Failing, stage="next"), run, dict.fromkeys(range(_SHARDS), ()), pool, SilentProgress()
        )
