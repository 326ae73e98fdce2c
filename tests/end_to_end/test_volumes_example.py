"""The example of synthetic volumes, from DICOM series and NIfTI files to the table of regions."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr

from examples.volumes.make import REGIONS, SHAPE, make
from tests.small_audits import Command

_VOLUMES = 8
_SECRETS = ("SYNTHETIC", "volume-0", "1.2.826")  # patients, files, UIDs


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("volumes")
    return folder, make(folder, _VOLUMES)


@pytest.fixture(scope="module")
def audited(lucency: Command, made: tuple[Path, list[str]]) -> tuple[Path, list[str]]:
    folder, regions = made
    (folder / "key").write_bytes(b"a key that only this test knows")
    done = lucency("audit", "audit.yaml", *_SMALL, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "7 explained, 1 rejected" in done.stdout + done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in _SECRETS)
    return folder / "run", regions


_SMALL = [
    part
    for setting in ("mlflow.enabled=false", "archive.key.file=key", "engine.shard_images=3", "engine.workers=2")
    for part in ("--set", setting)
]


def _by_row(run: Path, regions: list[str]) -> list[str]:
    """The region of each explained volume, in the order of the catalogue; an example's names sort by number."""
    table = pq.read_table(run / "catalogue.parquet", columns=["row", "private_location"]).to_pylist()
    numbers = [int(row["private_location"].removeprefix("volume-")[:2]) for row in table if row["row"] >= 0]
    return [regions[number] for number in numbers]


def test_a_series_with_a_slice_missing_is_rejected_and_every_other_volume_explained(
    audited: tuple[Path, list[str]],
) -> None:
    run, _ = audited
    (rejected,) = pq.read_table(run / "rejected.parquet").to_pylist()
    assert rejected["reason"].startswith("1 slice missing of 24")
    catalogue = pq.read_table(run / "catalogue.parquet").to_pylist()
    assert len(catalogue) == _VOLUMES
    explained = [row for row in catalogue if row["row"] >= 0]
    assert {(row["depth"], row["height"], row["width"]) for row in explained} == {SHAPE}
    assert {row["format"] for row in explained} == {"dicom", "nifti"}


def test_maps_are_volumes_and_those_of_iterations_lie_beside_them(audited: tuple[Path, list[str]]) -> None:
    maps = zarr.open_group(audited[0] / "maps.zarr", mode="r")
    assert maps["grad-cam"].shape == (_VOLUMES - 1, 1, 12, 10, 8)
    assert maps["grad-cam"].metadata.dimension_names == ("image", "target", "z", "y", "x")
    assert maps["rglas-steps"].shape == (_VOLUMES - 1, 1, 10, 12, 10, 8)
    assert maps["rglas-steps"].metadata.dimension_names == ("image", "target", "step", "z", "y", "x")


@pytest.mark.parametrize("method", ["grad-cam", "s-grad-cam", "glas"])
def test_the_map_of_a_volume_is_highest_in_the_region_of_its_lesion(
    audited: tuple[Path, list[str]], method: str
) -> None:
    run, regions = audited
    maps = np.asarray(zarr.open_group(run / "maps.zarr", mode="r")[method], np.float32)[:, 0]
    found = 0
    for saliency, region in zip(maps, _by_row(run, regions), strict=True):
        if region:
            at = np.unravel_index(saliency.argmax(), saliency.shape)
            bits = [int(2 * place >= side) for place, side in zip(at, saliency.shape, strict=True)]
            assert REGIONS[4 * bits[0] + 2 * bits[1] + bits[2]] == region
            found += 1
    assert found >= 3


def test_the_table_of_regions_is_what_the_maps_say(audited: tuple[Path, list[str]]) -> None:
    run, _ = audited
    table = {
        (row["method"], row["region"]): row
        for row in pq.read_table(run / "regions.parquet").to_pylist()
        if row["class"] == "lesion"
    }
    assert {region for _, region in table} == set(REGIONS)
    maps = np.asarray(zarr.open_group(run / "maps.zarr", mode="r")["grad-cam"], np.float64)[:, 0]
    for label, region in enumerate(REGIONS):
        halves = [(label >> bit) & 1 for bit in (2, 1, 0)]
        place = tuple(
            slice(half * side // 2, (half + 1) * side // 2) for half, side in zip(halves, (12, 10, 8), strict=True)
        )
        means = maps[(slice(None), *place)].mean((1, 2, 3))
        row = table["grad-cam", region]
        assert row["n"] == len(means)
        assert row["mean"] == pytest.approx(means.mean(), rel=1e-3, abs=1e-6)
        assert row["std"] == pytest.approx(means.std(), rel=1e-3, abs=1e-6)


def test_the_report_shows_planes_and_regions_and_no_patient(audited: tuple[Path, list[str]]) -> None:
    page = (audited[0] / "report.html").read_text()
    assert "axial, coronal and sagittal" in page
    assert "Regions of the atlas" in page
    assert any(region in page for region in REGIONS)
    assert not any(secret in page for secret in _SECRETS)
    assert "atlas.nii" not in page


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("archive={location: archive, images: frames}", "the model's input has 3 sides"),
        ("explain.map=[4, 4]", "the model's input has 3 sides, and so have its maps"),
        ("explain.atlas.file=labels.csv", "explain.atlas.file"),
        ("explain.atlas=null", "glas.search: atlas needs explain.atlas"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(
    lucency: Command, made: tuple[Path, list[str]], setting: str, told: str
) -> None:
    folder, _ = made
    done = lucency("plan", "audit.yaml", *_SMALL, "--set", "run=refused", "--set", setting, folder=folder)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert not (folder / "refused").exists()
