"""A memory is fitted to a split of the digits archive: once, with others, anew, from MLflow, and after kills."""

import csv
import json
from pathlib import Path
from typing import Any

import mlflow
import pyarrow.parquet as pq
import pytest
import ray

from storage.errors import ConfigurationError, LucencyError, ModelError, RunError
from tests.small_audits import (
    Command,
    kill,
    start_lucency,
    wait_for_manifests,
    write_archive,
    write_audit,
)
from tests.small_trainings import KillingWorkers
from workflows.audit import audit
from workflows.configuration_file import load
from workflows.fit_memory import Outcome, fit_alone
from workflows.fitted import FittedMemory, from_bytes
from workflows.progress import SilentProgress
from workflows.training import ray_train
from workflows.training.epochs import Loop, Seat
from workflows.training.ray_train import Group

# Of Ray Train and of MLflow's database, to their authors.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_IMAGES, _TRAIN = 64, 48
_EPOCHS = 4
_MEMORY = {"slots": 12, "epochs": _EPOCHS, "batch": 16, "rate": 0.01}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, three quarters of them the training split; one of these is damaged, one has no label."""
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, _IMAGES)
    with (folder / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows[4]["label"] = ""
    damaged = folder / "archive" / rows[6]["image"]
    damaged.write_bytes(damaged.read_bytes()[:-200])  # a PNG whose header is whole
    with (folder / "labels.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "label", "split"))
        writer.writerows((row["image"], row["label"], "train" if i < _TRAIN else "test") for i, row in enumerate(rows))
    lines = (folder / "labels.csv").read_text().splitlines(keepends=True)
    (folder / "few.csv").write_text("".join(line for line in lines if ",seven," not in line))
    (folder / "none.csv").write_text(lines[0] + "0000.png,,train\n")
    return folder


def written(
    folder: Path, run: str, *, slow: float = 0.0, tracking: dict[str, str] | None = None, **memory: object
) -> Path:
    return write_audit(
        folder,
        run=run,
        slow=slow,
        archive__labels={"file": "labels.csv", "split": "split"},
        explain={"methods": ["m-cam", "s-m-cam"], "memory": memory if "file" in memory else _MEMORY | memory},
        engine={"shard_images": 16, "batch": 16, "workers": 1},
        mlflow=tracking or {"enabled": False},
    )


def fitted(folder: Path, run: str, **keys: object) -> tuple[Outcome, FittedMemory]:
    path = written(folder, run, **keys)  # type: ignore[arg-type]
    outcome = fit_alone(load(path, ()), SilentProgress(), str(folder))
    return outcome, from_bytes(Path(outcome.file).read_bytes())


@pytest.fixture(scope="module")
def plain(archive: Path, shared_ray: None) -> tuple[Outcome, FittedMemory]:
    return fitted(archive, "plain")


def test_it_learns_from_the_labelled_images_of_the_split_and_loses_none(
    archive: Path, plain: tuple[Outcome, FittedMemory]
) -> None:
    outcome, memory = plain
    table = pq.read_table(archive / "plain/memory/catalogue.parquet")
    rejected = pq.read_table(archive / "plain/memory/rejected.parquet").to_pylist()
    assert len(table) == _TRAIN
    assert [row["stage"] for row in rejected] == ["decode"]
    assert outcome.learned + outcome.held_out == _TRAIN - 2  # one has no label
    assert memory.about.learned == outcome.learned
    assert [sorted(row) for row in memory.about.history] == [sorted(memory.about.history[0])] * _EPOCHS
    losses = [row["held-out.loss"] for row in memory.about.history]
    assert losses[-1] < losses[0]
    assert losses[memory.about.best_epoch] == min(losses)


def test_it_leaves_the_memory_and_nothing_large_that_only_the_fit_needed(
    archive: Path, plain: tuple[Outcome, FittedMemory]
) -> None:
    folder = archive / "plain/memory"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [".ledger", "catalogue.parquet", "rejected.parquet", "fit.json", plain[1].name]
    )
    assert not list((folder / ".ledger").glob("epochs/*"))
    again = fit_alone(load(archive / "plain.yaml", ()), SilentProgress(), str(archive))
    assert again == plain[0]


def test_killed_behind_its_last_step_it_is_ended_by_the_next_call(
    archive: Path, plain: tuple[Outcome, FittedMemory]
) -> None:
    told = archive / "plain/memory/fit.json"
    told.write_text(told.read_text().replace('"state": "done"', '"state": "running"'))
    assert fit_alone(load(archive / "plain.yaml", ()), SilentProgress(), str(archive)) == plain[0]
    assert json.loads(told.read_text())["state"] == "done"


def test_a_memory_that_is_gone_or_changed_is_refused(archive: Path, plain: tuple[Outcome, FittedMemory]) -> None:
    file = Path(plain[0].file)
    data = file.read_bytes()
    try:
        file.unlink()
        with pytest.raises(RunError, match=r"the file is gone; delete .* to fit anew"):
            fit_alone(load(archive / "plain.yaml", ()), SilentProgress(), str(archive))
        file.write_bytes(data.replace(b"held-out.agreement", b"held-out.agreemend"))
        with pytest.raises(LucencyError, match=r"was changed since|not a memory"):
            fit_alone(load(archive / "plain.yaml", ()), SilentProgress(), str(archive))
    finally:
        file.write_bytes(data)


def test_two_workers_reach_the_same_losses(
    archive: Path, plain: tuple[Outcome, FittedMemory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two tasks that find each other by a file: Ray Train, which does it in a cluster, trains in test_training."""

    def together(group: Group, loop: Loop, config: dict[str, Any]) -> None:
        @ray.remote(num_cpus=0.1)
        def worker(rank: int) -> None:
            from torch import device, distributed

            distributed.init_process_group("gloo", f"file://{tmp_path / 'meeting'}", rank=rank, world_size=2)
            try:
                loop(config, Seat(rank, 2, device("cpu")), lambda epoch: distributed.barrier())
            finally:
                distributed.destroy_process_group()

        assert group.workers == 2
        ray.get([worker.remote(rank) for rank in range(2)])

    monkeypatch.setattr(ray_train, "_run_together", together)
    shared = fitted(archive, "shared", workers=2)[1].about.history
    for mine, theirs in zip(plain[1].about.history, shared, strict=True):
        for name in ("train.loss", "held-out.loss", "held-out.address.slots"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-4), name


@pytest.fixture(scope="module")
def undisturbed(archive: Path, shared_ray: None) -> FittedMemory:
    """A memory from features computed anew when nothing goes wrong. A slowed model has the same numbers."""
    return fitted(archive, "undisturbed", features="recomputed")[1]


def test_features_computed_anew_are_the_cached_ones(
    undisturbed: FittedMemory, plain: tuple[Outcome, FittedMemory]
) -> None:
    for mine, theirs in zip(plain[1].about.history, undisturbed.about.history, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)


def test_a_fit_that_diverges_ends_at_once_and_says_which_key_may_help(
    archive: Path, shared_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive)
    monkeypatch.delattr("workflows.training.ray_train.cause_of")  # no worker fails: it would be begun anew
    folder, asked = archive / "diverged/memory", {"rate": 1e30, "tracking": {"experiment": "diverging"}}
    with pytest.raises(ModelError, match=r"the fit diverged.*explain\.memory\.rate than 1e\+30"):
        fitted(archive, "diverged", **asked)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [".ledger", "catalogue.parquet", "rejected.parquet", "fit.json"]
    )
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{archive / '.lucency' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("diverging").experiment_id])
    assert run.info.status == "FAILED"
    assert "the fit diverged" in run.data.tags["lucency.failed"]
    monkeypatch.delattr("workflows.fit_memory.run_epochs")  # nor does anybody try again
    with pytest.raises(ModelError, match="the fit diverged"):
        fitted(archive, "diverged", **asked)


def test_another_fit_in_the_same_folder_is_refused(archive: Path, plain: tuple[Outcome, FittedMemory]) -> None:
    with pytest.raises(RunError, match=r"explain\.memory\.epochs: the run has 4, the configuration says 5"):
        fitted(archive, "plain", epochs=5)
    written(archive, "plain")


@pytest.mark.parametrize(
    ("keys", "labels", "told"),
    [
        ({"slots": 100}, "labels.csv", r"explain\.memory\.slots: 100 slots, and \d\d images to learn from"),
        ({}, "few.csv", r"explain\.memory: no image of 'seven' among the \d+ it may learn from"),
        ({}, "none.csv", r"explain\.memory: a memory learns from labels, and no image it may learn from has one"),
        ({"split": "nowhere"}, "labels.csv", r"explain\.memory\.split: no file of the archive belongs to 'nowhere'"),
    ],
)
def test_what_cannot_fill_a_memory_is_refused_before_anything_is_computed(
    archive: Path, shared_ray: None, keys: dict[str, object], labels: str, told: str
) -> None:
    path = written(archive, "refused", **keys)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=told):
        fit_alone(load(path, (f"archive.labels.file={labels}",)), SilentProgress(), str(archive))
    assert not (archive / "refused/memory/fit.json").exists()


def test_an_audit_uses_the_fitted_memory_and_one_from_mlflow_is_the_same(
    lucency: Command, archive: Path, plain: tuple[Outcome, FittedMemory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archive)
    tracking = {"experiment": "memories"}
    path = written(archive, "tracked", tracking=tracking)
    done = lucency("fit-memory", str(path), folder=archive)
    assert done.returncode == 0, done.stderr
    assert f"epoch {plain[0].best_epoch} of {_EPOCHS} is kept" in done.stdout
    audit(load(path, ()), SilentProgress(), str(archive))
    name = plain[1].name  # by the same seed the same bytes, also in other processes
    assert (archive / "tracked/memory" / name).is_file()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{archive / '.lucency' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'memories'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    of_fit = runs["memory"]
    curve = client.get_metric_history(of_fit.info.run_id, "held_out.loss")
    assert [(point.step, point.value) for point in sorted(curve, key=lambda point: point.step)] == [
        (epoch, row["held-out.loss"]) for epoch, row in enumerate(plain[1].about.history)
    ]
    assert of_fit.data.params["memory.slots"] == "12"
    assert of_fit.data.tags["digest.memory"] == plain[1].sha256
    file = f"mlflow:runs:/{of_fit.info.run_id}/memory.pt"
    assert f"MLflow: explain.memory.file: {file}" in done.stdout
    audit(load(written(archive, "given", tracking=tracking, file=file), ()), SilentProgress(), str(archive))
    given, tracked = (json.loads((archive / run / "run.json").read_text()) for run in ("given", "tracked"))
    assert given["digests"]["memory"] == tracked["digests"]["fitted"] == plain[1].sha256
    assert any("whether it learned from images that are audited here is not known" in note for note in given["notes"])
    assert any("learned from images that are audited here, and from" in note for note in tracked["notes"])
    for table in ("cases.parquet", "metrics.parquet"):
        assert (archive / "given" / table).read_bytes() == (archive / "tracked" / table).read_bytes()


def test_a_driver_and_a_worker_killed_in_mid_epoch_cost_those_epochs_and_no_bit(
    archive: Path, undisturbed: FittedMemory
) -> None:
    """Epochs that compute features anew with a slowed model last long enough to be killed in their middle."""
    slow = written(archive, "killed", slow=0.2, features="recomputed")
    process = start_lucency("fit-memory", str(slow), folder=archive)
    folder = archive / "killed/memory"
    (first, *_) = wait_for_manifests(folder, "epochs", 1, process)
    kill(process)
    assert len(list((folder / ".ledger/epochs").glob("*.json"))) < _EPOCHS
    assert not list(folder.glob("memory-*.pt"))
    moment = first.stat().st_mtime_ns
    killing = KillingWorkers("memory", _EPOCHS, first)
    resumed = load(written(archive, "killed", slow=0.2, features="recomputed"), ())
    fit_alone(resumed, killing, str(archive))
    assert killing.victims
    assert killing.moments == {moment}  # the finished epoch is not done again
    assert [path.name for path in folder.glob("memory-*.pt")] == [undisturbed.name]
