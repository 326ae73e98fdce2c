"""An audit with methods of every kind: what it plans, what it leaves, what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from tasks.cams.names import BASE_METHODS, FEATURE_METHODS, MEMORY_METHODS
from tests.small_audits import Command, write_archive, write_audit

_IMAGES = 12
_METHODS = [
    *(base for base in BASE_METHODS if base not in ("ss-cam", "is-cam")),
    "s-grad-cam", "s-layer-cam", "fs-ablation-cam", "fs-s-eigen-grad-cam", "s-score-cam", "s-glas", "s-gradient",
]  # fmt: skip
_FEW = {
    "occlusion_cells": 8, "rise_masks": 12, "lime_samples": 30, "lime_cells": 4, "perturbation_steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def audited(lucency: Command, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("methods")
    write_archive(folder, _IMAGES)
    config = write_audit(
        folder,
        explain__methods=_METHODS,
        explain__glas={"points": 4, "iterations": 2},
        explain__baselines=_FEW,
        explain__targets=["three", "seven"],
        explain__memory={"split": None, "slots": 6, "epochs": 2},
    )
    done = lucency("audit", str(config), folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stderr + done.stdout


def test_every_method_has_a_map_of_every_image_and_class(audited: tuple[Path, str]) -> None:
    maps = zarr.open_group(audited[0] / "maps.zarr", mode="r")
    assert set(maps.array_keys()) == {*_METHODS, "rglas-steps", "classes"}
    for method in _METHODS:
        values = np.asarray(maps[method], np.float32)
        assert values.shape == (_IMAGES, 2, 8, 8)
        assert np.isfinite(values).all(), method
        assert values.std() > 0, method


def test_cam_and_grad_cam_differ_by_the_number_of_cells_behind_a_pooled_linear_head(audited: tuple[Path, str]) -> None:
    maps = zarr.open_group(audited[0] / "maps.zarr", mode="r")
    cam, grad_cam = (np.asarray(maps[name], np.float32) for name in ("cam", "grad-cam"))
    np.testing.assert_allclose(cam, 64 * grad_cam, rtol=5e-3, atol=64 * np.abs(grad_cam).max() * 1e-3)


def test_what_is_profiled_is_what_is_cheap_or_made_from_levels(audited: tuple[Path, str]) -> None:
    profile = zarr.open_group(audited[0] / "profile.zarr", mode="r")
    levels, importance = set(profile["levels"].group_keys()), set(profile["importance"].group_keys())
    dear = {"ss-cam", "is-cam", "glas-light", "glas-shadow", "rglas"}  # smooth-grad-cam++ makes no draw here
    dear |= {"occlusion", "rise", "lime", "meaningful-perturbation"}
    assert levels == set(BASE_METHODS) - dear
    assert importance == levels & {*FEATURE_METHODS, *MEMORY_METHODS}


def test_consistency_is_told_of_every_method(audited: tuple[Path, str]) -> None:
    table = pq.read_table(audited[0] / "metrics.parquet").to_pylist()
    told = {row["method"] for row in table if row["measure"] == "consistency.pearson"}
    assert {f"{base}.raw" for base in BASE_METHODS if base not in ("ss-cam", "is-cam")} <= told
    assert {"glas.tanh", "fs-ablation-cam.raw", "score-cam.linear", "gradient.tanh"} <= told
    assert not {"rglas.tanh", "lime.tanh"} & told


def test_the_plan_counts_what_each_pass_forwards(audited: tuple[Path, str]) -> None:
    features, look = 64, 2 * 4**2 + 1
    rows = dict(re.findall(r"(?m)^(profile|maps) .* (\d+) +[\d.]+$", audited[1]))
    assert int(rows["profile"]) == _IMAGES * (1 + features + look + 10 * 2)  # all ten classes' gradients
    shared, by_class = features + look + (6**2 + 1) + 12 + 30, 2 * (look + 1) + 2 + 2 * 3
    variants = len({name.replace("s-", "", 1) if name.startswith("s-") else name for name in _METHODS})
    behind_maps = 2 * variants * 2  # drop and inverse, of each method's two classes
    assert int(rows["maps"]) == _IMAGES * (1 + shared + 2 * by_class + behind_maps)


def test_the_report_is_built_from_it(audited: tuple[Path, str]) -> None:
    text = (audited[0] / "report.html").read_text()
    assert "eigen-grad-cam" in text
    assert json.loads((audited[0] / "run.json").read_text())["counts"]["explained"] == _IMAGES


_CUBED = """
from examples.digits.digits_model import DigitsNet, classes, preprocess

class Cubed(DigitsNet):
    def forward(self, canvas):
        return super().forward(canvas) ** 3

factory = Cubed
"""


def test_a_method_that_the_model_cannot_support_is_refused_before_anything_starts(
    lucency: Command, tmp_path: Path
) -> None:
    write_archive(tmp_path, 2)
    config = write_audit(tmp_path, explain__methods=["cam"], code=_CUBED)
    done = lucency("audit", str(config), folder=tmp_path)
    assert done.returncode == 2
    assert "explain.methods: cam needs a model" in done.stderr
    assert "grad-cam" in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()
