"""Whole audits with M-CAM and a memory that is given: maps, what is told of the memory, and the same from any plan."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr

from examples.digits.digits_model import SIDE, DigitsNet, classes, preprocess
from storage.decode import decode_image
from tasks.capture import capturing
from tasks.classifier import Classifier
from tasks.fitting import Figures, Fitting, Recipe
from tasks.layers import resolve_layer
from tests.small_audits import Command, write_archive, write_audit
from workflows.fitted import About, preprocess_digest, to_bytes
from workflows.models import describe

_IMAGES = 30
_METHODS = ["m-cam", "s-m-cam", "fs-s-m-cam"]
_CPU = torch.device("cpu")


def _pixels(folder: Path) -> torch.Tensor:
    names = (folder / "archive" / f"{number:04d}.png" for number in range(0, _IMAGES, 2))
    return preprocess([decode_image(name.read_bytes(), format="png") for name in names], _CPU)


def _varied(folder: Path) -> DigitsNet:
    """An untrained network that answers now one digit and now another: its mean logits are 0."""
    torch.manual_seed(7)
    module = DigitsNet().eval().requires_grad_(False)
    module.classifier.bias -= module(_pixels(folder)).mean(0)
    return module


def _fit(module: DigitsNet, folder: Path) -> bytes:
    """The file of a memory of nine slots, fitted to the network in a few steps."""
    layer = resolve_layer(module, "auto", torch.zeros(1, 1, SIDE, SIDE)).name
    model = Classifier(module, layer, classes, "one-label", preprocess, _CPU)
    with capturing(model) as capture:
        forward = capture(_pixels(folder))
    labels = torch.nn.functional.one_hot(forward.logits.argmax(1), len(classes)).float()
    shape, recipe = tuple(forward.activation.shape[1:]), Recipe(slots=9, epochs=4, rate=0.01)
    fitting = Fitting(recipe, shape, len(classes), _CPU)
    while not fitting.done:
        learned = fitting.step(forward.activation, labels, images=len(labels)).total.item()
        judged = Figures.of(fitting.memory, forward.activation, labels, forward.logits, "one-label")
        fitting.end_epoch(learned, judged)
    about = About(
        model_sha256=describe(model).weights_sha256,
        preprocess=preprocess_digest(model.preprocess),
        layer=layer,
        input=(SIDE, SIDE),
        shape=shape,
        classes=classes,
        task="one-label",
        recipe=recipe,
        learned=len(labels),
        held_out=len(labels),
        best_epoch=fitting.best_epoch,
        history=tuple(fitting.history),
    )
    return to_bytes(fitting.best(), about)


def _audit(lucency: Command, folder: Path, run: str, module: DigitsNet, **overrides: object) -> Path:
    config = write_audit(
        folder, run=run, explain__methods=_METHODS, explain__memory={"file": str(folder / "memory.pt")}, **overrides
    )
    torch.save(module.state_dict(), folder / "weights.pt")
    done = lucency("audit", str(config), folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / run


@pytest.fixture(scope="module")
def audited(lucency: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two audits with one memory: in shards of 8 by two workers, and in shards of 16 in other batches by one."""
    folder = tmp_path_factory.mktemp("m-cam")
    write_archive(folder, _IMAGES)
    module = _varied(folder)
    (folder / "memory.pt").write_bytes(_fit(module, folder))
    first = _audit(lucency, folder, "first", module, engine__workers=2)
    engine = {"shard_images": 16, "batch": 7, "workers": 1}
    return first, _audit(lucency, folder, "second", module, engine=engine)


def test_every_image_has_finite_maps_and_none_is_rejected(audited: tuple[Path, Path]) -> None:
    maps = zarr.open_group(audited[0] / "maps.zarr", mode="r")
    for method in _METHODS:
        values = np.asarray(maps[method], np.float32)
        assert values.shape == (_IMAGES, 1, 8, 8)
        assert np.isfinite(values).all(), method
        assert values.std() > 0, method
    counts = json.loads((audited[0] / "run.json").read_text())["counts"]
    assert counts == {"catalogued": _IMAGES, "explained": _IMAGES, "rejected": 0}


def test_another_plan_of_shards_and_batches_gives_the_same_votes_and_agreement(audited: tuple[Path, Path]) -> None:
    one, other = (zarr.open_group(run / "profile.zarr", mode="r")["memory"] for run in audited)
    assert set(one.array_keys()) == {"votes", "positive", "steady", "recalled", "decisions", "agreed"}
    for name in one.array_keys():
        np.testing.assert_allclose(one[name][...], other[name][...], err_msg=name, rtol=1e-9 if name == "steady" else 0)
    assert one["votes"][...].sum() == _IMAGES
    assert (one["votes"][...].sum(0) > 0).sum() > 1


def test_the_cases_hang_on_the_slots_that_were_voted_for(audited: tuple[Path, Path]) -> None:
    cases = pq.read_table(audited[0] / "cases.parquet")
    votes = zarr.open_group(audited[0] / "profile.zarr", mode="r")["memory/votes"][...]
    counted = np.zeros_like(votes)
    np.add.at(counted, (cases["m-cam.slot"].to_numpy(), cases["class"].to_numpy()), 1)  # targets: predicted
    assert np.array_equal(counted, votes)
    for name in ("m-cam.slot drop", "m-cam.slot steady", "memory logit"):
        assert np.isfinite(cases[name].to_numpy()).all()


def test_the_metrics_tell_of_the_memory_and_consistency_is_told_of_maps_alone(audited: tuple[Path, Path]) -> None:
    rows = pq.read_table(audited[0] / "metrics.parquet").to_pylist()
    told = {row["measure"]: row for row in rows if (row["method"], row["class"]) == ("m-cam", "(all)")}
    memory = zarr.open_group(audited[0] / "profile.zarr", mode="r")["memory"]
    assert told["agreement"]["value"] == memory["agreed"][...].sum() / memory["decisions"][...].sum()
    assert told["agreement"]["n"] == _IMAGES
    assert 1 <= told["slots used"]["value"] <= 9
    assert 0 < told["slot steadiness"]["value"] <= 1
    consistent = {row["method"].rpartition(".")[0] for row in rows if row["measure"].startswith("consistency")}
    assert consistent == {"m-cam", "fs-m-cam"}


def test_the_run_holds_its_memory_and_the_report_is_rebuilt_from_the_run_alone(
    lucency: Command, audited: tuple[Path, Path]
) -> None:
    run = audited[0]
    (kept,) = (run / "memory").iterdir()
    data = kept.read_bytes()
    assert data == (run.parent / "memory.pt").read_bytes()
    assert kept.name == f"memory-{hashlib.sha256(data).hexdigest()[:16]}.pt"
    report = (run / "report.html").read_bytes()
    assert b"The memory behind M-CAM" in report
    (run / "report.html").unlink()
    (run.parent / "memory.pt").rename(run.parent / "away.pt")
    done = lucency("report", str(run), folder=run.parent)
    assert done.returncode == 0, done.stderr
    assert (run / "report.html").read_bytes() == report
