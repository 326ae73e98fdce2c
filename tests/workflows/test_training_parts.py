"""Parts of the training of classifiers that need no cluster: the feed of pictures, the loop of a worker, the ledger."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from ray.exceptions import WorkerCrashedError
from ray.train import TrainingFailedError

from storage.arrays import create_pixels, open_pixels, write_pixels
from storage.errors import LucencyError, ModelError
from storage.ledger import Ledger, Manifest
from storage.objects import Objects
from tests.small_trainings import IMAGES, SHARD, drawn, plan, pupils, write_data
from workflows.training import feed as feeding
from workflows.training import ray_train
from workflows.training.epochs import STAGE, Seat, failure, last_state
from workflows.training.feed import pictures_of
from workflows.training.ray_train import Group, fits_now, room_for, run_group
from workflows.training.run_trials import may_start
from workflows.training.trials import TrialPlan, conclusion, history_of, tidy
from workflows.training.worker import train

_ALONE = Seat(0, 1, torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path)
    return tmp_path


class TestPixels:
    def test_shards_written_apart_read_back_as_one(self, tmp_path: Path) -> None:
        run = Objects(str(tmp_path))
        values = np.random.default_rng(0).integers(0, 255, (10, 3, 6, 6), np.uint8)
        create_pixels(run, 10, 4, (3, 6, 6))
        for start in (8, 0, 4):
            write_pixels(run, start, values[start : start + 4])
        np.testing.assert_array_equal(np.asarray(open_pixels(run)[...]), values)

    @pytest.mark.parametrize(("shard_images", "side", "together"), [(4, 6, 4), (12, 600, 2), (7, 600, 1)])
    def test_chunks_fill_a_shard(self, tmp_path: Path, shard_images: int, side: int, together: int) -> None:
        create_pixels(Objects(str(tmp_path)), 30, shard_images, (1, side, side))
        pixels = open_pixels(Objects(str(tmp_path)))
        assert (pixels.shards, pixels.chunks) == ((shard_images, 1, side, side), (together, 1, side, side))


class TestFeed:
    def test_every_part_gets_its_own_pictures(self, folder: Path) -> None:
        learned = pupils(Objects(str(folder / "data")), trained=True)
        order = np.random.default_rng(1).permutation(len(learned))
        parts = [order[:7], order[7:7], order[7:20], order[20:]]
        for ahead in (0, 1, 9):
            found = list(pictures_of(learned, parts, ahead=ahead))
            for part, pictures in zip(parts, found, strict=True):
                np.testing.assert_array_equal(pictures[:, 0], drawn()[0][learned.rows[part]])

    def test_each_shard_is_read_once_and_let_go(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[int] = []

        class Watched:
            def __init__(self, pixels: Any) -> None:
                self._pixels = pixels
                self.shape, self.shards = pixels.shape, pixels.shards

            def __getitem__(self, rows: slice) -> Any:
                read.append(rows.start // SHARD)
                return self._pixels[rows]

        monkeypatch.setattr(feeding, "open_pixels", lambda run: Watched(open_pixels(run)))
        learned = pupils(Objects(str(folder / "data")), trained=True)
        parts = np.array_split(np.arange(len(learned)), 12)
        given = pictures_of(learned, parts, ahead=1)
        next(given)
        given.close()
        assert read in ([0], [0, 1])  # no more than one ahead
        read.clear()
        for _ in pictures_of(learned, parts, ahead=2):
            pass
        assert read == list(range(IMAGES // SHARD))


def trained(folder: Path, name: str, **keys: Any) -> TrialPlan:
    asked = plan(folder, name, **keys)
    train(asked, _ALONE, lambda epoch: None)
    return asked


def weights(asked: TrialPlan) -> str:
    return hashlib.sha256(asked.folder.get("weights.pt")).hexdigest()


class TestLoop:
    def test_it_leaves_weights_figures_and_says_so_last(self, folder: Path) -> None:
        asked = trained(folder, "plain", epochs=8)
        told = conclusion(asked)
        assert told is not None
        assert (told["epochs"], told["sha256"]) == (8, weights(asked))
        losses = [row["validation.loss"] for row in history_of(asked)]
        assert losses[told["best_epoch"]] == min(losses) < losses[0]
        state = torch.load(folder / "trials/plain/weights.pt", weights_only=True)
        assert state["head.weight"].shape == (2, 8)
        assert pq.read_table(folder / "trials/plain/history.parquet")["epoch"].to_pylist() == list(range(8))

    def test_of_all_checkpoints_the_last_is_kept_and_in_the_end_none(self, folder: Path) -> None:
        asked = trained(folder, "plain")
        assert [path.name for path in (folder / "trials/plain/.ledger/epochs").glob("*.pt")] == ["00000002.pt"]
        tidy(asked)
        assert not list((folder / "trials/plain/.ledger").rglob("*.pt"))
        assert len(list((folder / "trials/plain/.ledger/epochs").glob("*.figures"))) == 3

    @pytest.mark.parametrize("behind", [0, 1])
    def test_interrupted_behind_an_epoch_it_ends_with_the_same_bytes(self, folder: Path, behind: int) -> None:
        def interrupt(epoch: int) -> None:
            if epoch == behind:
                raise KeyboardInterrupt

        asked = plan(folder, "interrupted")
        with pytest.raises(KeyboardInterrupt):
            train(asked, _ALONE, interrupt)
        torch.manual_seed(1234)  # another process has another history of draws
        done: list[int] = []
        train(asked, _ALONE, done.append)
        assert done == list(range(behind + 1, 3))
        assert weights(asked) == weights(trained(folder, "undisturbed"))

    def test_another_seed_gives_other_weights(self, folder: Path) -> None:
        assert weights(trained(folder, "one", seed=1)) != weights(trained(folder, "other", seed=2))

    def test_without_batch_norm_micros_add_up_to_their_batch(self, folder: Path) -> None:
        small, whole = (history_of(trained(folder, str(n), source="plain_network", micro=n)) for n in (3, 12))
        for mine, theirs in zip(small, whole, strict=True):
            assert theirs == pytest.approx(mine, rel=1e-4)

    def test_a_loss_that_is_no_number_ends_it_with_the_reason_and_overwrites_nothing(self, folder: Path) -> None:
        asked = trained(folder, "diverging", source="diverging_network")
        reason = failure(asked.folder)
        assert reason is not None
        assert "diverged in epoch 2" in reason
        assert "training.rate" in reason
        assert conclusion(asked) is None
        assert not asked.folder.exists("weights.pt")
        ledger = Ledger(asked.folder, STAGE)
        assert ledger.shards() == [0]
        state = last_state(ledger)
        assert state is not None
        assert all(torch.isfinite(tensor).all() for tensor in state["module"].values())

    def test_what_cannot_begin_is_an_error_of_the_group(self, folder: Path) -> None:
        asked = plan(folder, "none")
        nothing = replace(asked.train, positive=np.zeros_like(asked.train.positive))
        with pytest.raises(ModelError, match="positive"):
            train(replace(asked, train=nothing), _ALONE, lambda epoch: None)
        assert failure(asked.folder) is None


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpu", "workers", "room"),
    [
        ([(2, 0)], 1.0, False, 1, 2),
        ([(2, 0)], 1.0, False, 2, 1),
        ([(3, 0), (3, 0)], 2.0, False, 1, 2),
        ([(16, 4), (16, 0)], 1.0, True, 2, 2),
        ([(1, 0)], 1.0, False, 4, 1),
        ([], 1.0, True, 1, 1),
    ],
)
def test_a_cluster_has_room_for_as_many_groups_as_its_nodes_have_places(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[tuple[int, int]],
    cpus: float,
    gpu: bool,
    workers: int,
    room: int,
) -> None:
    alive = [{"Alive": True, "Resources": {"CPU": float(cores), "GPU": float(gpus)}} for cores, gpus in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 99.0, "GPU": 9.0}}])
    assert room_for(Group("a training", "RUN", workers, cpus, gpu, attempts=1)) == room


@pytest.mark.parametrize(("cpus", "gpus", "workers", "fits"), [(8, 2, 2, True), (8, 1, 2, False), (1, 2, 2, False)])
def test_a_group_fits_where_others_leave_it_enough_free(
    monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: int, workers: int, fits: bool
) -> None:
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": float(cpus), "GPU": float(gpus)})
    assert fits_now(Group("a training", "RUN", workers, 1.0, gpu=True, attempts=1)) is fits


@pytest.mark.parametrize(
    ("running", "at_once", "starts"), [(0, 1, True), (1, 1, False), (1, 2, False), (1, None, False)]
)
def test_on_a_full_cluster_only_a_trial_with_none_beside_it_waits_for_its_place(
    monkeypatch: pytest.MonkeyPatch, running: int, at_once: int | None, starts: bool
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    group = Group("a training", "RUN", 1, 1.0, gpu=False, attempts=1)
    monkeypatch.setattr(ray, "available_resources", lambda: {})
    assert may_start(group, running, at_once) is starts
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 8.0})
    assert may_start(group, running, at_once) is (at_once is None or running < at_once)


def test_faults_end_a_group_only_where_no_epoch_is_done_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, starts = Ledger(Objects(str(tmp_path)), STAGE), []

    class Preempted:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def fit(self) -> None:
            starts.append(len(ledger.shards()))
            if len(starts) < 5:
                ledger.commit(Manifest(STAGE, len(starts), 1))
            raise TrainingFailedError("preempted")

    monkeypatch.setattr(ray_train, "TorchTrainer", Preempted)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    with pytest.raises(LucencyError, match=r"a training ended: .*the same command goes on from the last one"):
        run_group(Group("a training", str(tmp_path), 2, 1.0, gpu=False, attempts=1), lambda *_: None, {})
    assert starts == [0, 1, 2, 3, 4]


def test_a_lone_worker_is_tried_as_often_as_its_group_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own retries are off: what ran out of memory it would try again without end."""
    tried: list[dict[str, Any]] = []

    def lost(*_: Any) -> None:
        raise WorkerCrashedError

    def remote(**options: Any) -> Any:
        return lambda function: SimpleNamespace(remote=lambda *_: tried.append(options))

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray_train, "_wait_for", lost)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    with pytest.raises(LucencyError, match="a training ended: WorkerCrashedError"):
        run_group(Group("a training", str(tmp_path), 1, 1.0, gpu=False, attempts=3), lambda *_: None, {})
    assert [options["max_retries"] for options in tried] == [0, 0, 0]


def test_a_lone_worker_for_which_no_machine_is_large_enough_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled: list[Any] = []
    monkeypatch.setattr(ray, "wait", lambda references, timeout: ([], references))
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}])
    monkeypatch.setattr(ray, "cluster_resources", dict)
    with pytest.raises(LucencyError, match=r"a training asks for .*no machine of the cluster has as much"):
        ray_train._wait_for("reference", Group("a training", "RUN", 1, 2.0, gpu=False, attempts=1))
    assert cancelled == ["reference"]
