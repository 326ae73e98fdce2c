"""Classifiers are trained on a small cluster: several at once, by several workers, after kills, and without them."""

import hashlib
import logging
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from storage.arrays import open_pixels
from storage.catalogue import shard_images
from storage.objects import Objects
from storage.tables import write_table
from tests.small_trainings import IMAGES, SHARD, STORED, KillingWorkers, drawn, plan, trained, write_images
from workflows.cataloguing import build_catalogue
from workflows.cluster import ray_cluster
from workflows.configuration import Archive, Engine, Tracking
from workflows.passes import pass_rejections
from workflows.progress import SilentProgress
from workflows.training.epochs import Seat
from workflows.training.pixels import store_pixels
from workflows.training.trials import TrialPlan, conclusion, history_of
from workflows.training.worker import train
from workflows.workers import repeatable

# Of Ray Train and of MLflow's database, to their authors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, shared_ray: None) -> Path:
    """The archive, its catalogue and its pixels."""
    folder = tmp_path_factory.mktemp("study")
    write_images(folder)
    archive = Archive.model_validate(
        {"location": str(folder / "archive"), "labels": {"file": str(folder / "labels.csv")}}
    )
    engine, run = Engine(shard_images=SHARD), Objects(str(folder / "data"))
    table = build_catalogue(
        archive, shard_images=SHARD, shard_bytes=engine.shard_bytes, progress=SilentProgress()
    ).table
    write_table(run, "catalogue.parquet", table, group_rows=shard_images(table))
    with ray_cluster(engine, folder) as placement:
        rejected = store_pixels(
            run, archive, engine, stored=STORED, channels=1, placement=placement, progress=SilentProgress()
        )
    assert rejected == {4}
    return folder


def weights(asked: TrialPlan) -> str:
    return hashlib.sha256(asked.folder.get("weights.pt")).hexdigest()


@pytest.fixture(scope="module")
def together(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """Three trials for the two places there are, one of which diverges."""
    plans = [
        plan(folder, "undisturbed", source="slow_network"),
        plan(folder, "diverging", source="diverging_network"),
        plan(folder, "seed", seed=1),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return trained(plans, at_once=2, tracking=Tracking(experiment="trials"))


def test_pixels_are_the_archives_and_what_cannot_be_decoded_has_a_reason(folder: Path) -> None:
    run = Objects(str(folder / "data"))
    pixels = np.asarray(open_pixels(run)[...])
    good = np.arange(IMAGES) != 4
    np.testing.assert_array_equal(pixels[good, 0], drawn()[0][good])
    assert not pixels[4].any()
    assert [item.stage for item in pass_rejections(run, "pixels")] == ["decode"]


def test_trials_run_side_by_side_and_one_that_diverges_costs_no_other(
    folder: Path, together: dict[str, str | None]
) -> None:
    assert list(together) == ["undisturbed", "diverging", "seed"]
    assert together["undisturbed"] is together["seed"] is None
    assert "diverged in epoch 2" in str(together["diverging"])
    moments = {
        name: [path.stat().st_mtime_ns for path in (folder / f"trials/{name}/.ledger/epochs").glob("*.json")]
        for name in together
    }
    began = {name: (folder / f"trials/{name}/.ledger/begun").stat().st_mtime_ns for name in together}
    assert began["undisturbed"] < began["diverging"] < max(moments["undisturbed"])
    assert began["seed"] > min(max(moments["undisturbed"]), max(moments["diverging"]))  # there are two places
    assert len(moments["diverging"]) == 1
    assert not list((folder / "trials").rglob("*.ledger/epochs/*.pt"))
    assert not (folder / "trials/diverging/weights.pt").exists()


def test_mlflow_has_a_run_for_each_with_its_curves(folder: Path, together: dict[str, str | None]) -> None:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / '.lucency' / 'mlflow.db'}")
    found = client.get_experiment_by_name("trials")
    runs = {run.info.run_name: run for run in client.search_runs([found.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "undisturbed": "FINISHED",
        "diverging": "FAILED",
        "seed": "FINISHED",
    }
    steps = {name: client.get_metric_history(run.info.run_id, "validation.loss") for name, run in runs.items()}
    assert {name: sorted(point.step for point in points) for name, points in steps.items()} == {
        "undisturbed": [0, 1, 2],
        "diverging": [0],
        "seed": [0, 1, 2],
    }
    seed = runs["seed"]
    assert (seed.data.tags["lucency.study"], seed.data.tags["lucency.trial"]) == ("a study", "seed")
    assert (seed.data.params["loss"], seed.data.params["training.seed"]) == ("cb-focal", "1")
    assert client.list_artifacts(seed.info.run_id) == []


def test_what_has_ended_is_not_trained_again(folder: Path, together: dict[str, str | None]) -> None:
    class Refusing(SilentProgress):
        def note(self, text: str) -> None:
            raise AssertionError(text)

    plans = [plan(folder, name) for name in together]
    before = {asked.name: conclusion(asked) for asked in plans}
    assert trained(plans, Refusing()) == together
    assert {asked.name: conclusion(asked) for asked in plans} == before


def test_two_workers_that_are_killed_once_train_one_classifier(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared = plan(folder, "shared", source="slow_plain_network", workers=2)
    single = plan(folder, "single", source="plain_network")
    killing = KillingWorkers("training", 3, folder / "trials/shared/.ledger/epochs/00000000.json")
    with caplog.at_level(logging.WARNING):
        assert trained([shared], killing) == {"shared": None}
    assert len(killing.victims) == 2
    train(single, Seat(0, 1, torch.device("cpu")), lambda epoch: None)
    for mine, theirs in zip(history_of(single), history_of(shared), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)


class _Lost(Exception):
    """A process that ends behind an epoch."""


def test_processes_lost_in_mid_training_cost_no_bit(folder: Path, together: dict[str, str | None]) -> None:
    """The first ends behind its first epoch, by an injected fault that leaves what a kill leaves: a study's driver is
    killed for that in test_study. The next one is killed behind the first of the epochs that are left."""

    def end(epoch: int) -> None:
        raise _Lost

    asked = plan(folder, "killed", source="slow_network")
    threads = torch.get_num_threads()
    repeatable("cpu", 1)
    try:
        with pytest.raises(_Lost):
            train(asked, Seat(0, 1, torch.device("cpu")), end)
    finally:
        torch.set_num_threads(threads)
    assert conclusion(asked) is None
    (first,) = (folder / "trials/killed/.ledger/epochs").glob("*.json")
    moment = first.stat().st_mtime_ns
    killing = KillingWorkers("training", 3, first)
    assert trained([asked], killing) == {"killed": None}
    assert killing.victims
    assert killing.moments == {moment}  # the finished epoch is not done again
    assert weights(asked) == weights(plan(folder, "undisturbed"))
