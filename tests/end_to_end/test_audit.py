"""A whole audit from the command line: what it leaves, what it counts, what it never tells."""

import json
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
import torch
import xarray
import zarr
from PIL import Image

from examples.digits.digits_model import DigitsNet, preprocess
from storage.decode import decode_image
from tests.small_audits import Command, in_own_process, write_archive, write_audit

_IMAGES = 40
_CANARY = "Canary^Tweety"
_CANARY_ID = "CANARY-4711"
_SECRETS = ("Canary", "Tweety", "CANARY-4711", "19420124")


@pytest.fixture(scope="module")
def sessions_before(own_ray: None) -> set[Path]:
    """The folders that earlier Ray sessions of this machine logged into."""
    return set(Path(tempfile.gettempdir(), "ray").glob("session_2*"))


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory, sessions_before: set[Path]) -> tuple[Path, str]:
    """An audit with MLflow on, over an archive with a canary patient, a broken file and a text file."""
    folder = tmp_path_factory.mktemp("audited")
    write_archive(folder, _IMAGES)
    archive = folder / "archive"
    canary = pydicom.dcmread(archive / "0001.dcm")
    canary.PatientName, canary.PatientID, canary.PatientBirthDate = _CANARY, _CANARY_ID, "19420124"
    canary.save_as(archive / f"{_CANARY_ID}.dcm")
    truncated = (archive / "0003.dcm").read_bytes()[:-2000]
    assert b"SYNTHETIC" in truncated
    (archive / "truncated.dcm").write_bytes(truncated.replace(b"SYNTHETIC", b"CanaryTwe"))
    (archive / "notes.txt").write_text(f"patient {_CANARY}\n")
    with zipfile.ZipFile(archive / "more.zip", "w") as packed:
        packed.write(archive / "0000.png", f"{_CANARY_ID}/again.png")
    boxes = ["image,label,x0,y0,x1,y1", "0000.png,two,1,1,9,9", f"{_CANARY_ID},two,9,9,1,1", f"{_CANARY},two,1,1,9,9"]
    (folder / "boxes.csv").write_text("\n".join(boxes) + "\n")
    config = write_audit(folder, archive__boxes={"file": "boxes.csv"}, engine__workers=2, mlflow__enabled=True)
    done = in_own_process("audit", str(config), folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_every_catalogued_image_ends_explained_or_rejected(audited: tuple[Path, str]) -> None:
    run = audited[0] / "run"
    catalogue = pq.read_table(run / "catalogue.parquet").to_pylist()
    explained = set(pq.read_table(run / "cases.parquet")["id"].to_pylist())
    rejected = {row["id"]: row for row in pq.read_table(run / "rejected.parquet").to_pylist()}
    assert explained | set(rejected) == {row["id"] for row in catalogue}
    assert not explained & set(rejected)
    counts = json.loads((run / "run.json").read_text())["counts"]
    assert counts == {"catalogued": _IMAGES + 4, "explained": _IMAGES + 2, "rejected": 2}
    assert sorted(row["stage"] for row in rejected.values()) == ["catalogue", "decode"]


def test_bad_boxes_are_rejected_by_line_and_told_in_the_report(audited: tuple[Path, str]) -> None:
    run = audited[0] / "run"
    rejected = pq.read_table(run / "rejected_boxes.parquet").to_pylist()
    assert [(row["line"], row["label"], row["id"] is None) for row in rejected] == [(3, "two", False), (4, "two", True)]
    told = "2 box(es) are rejected (1 empty or reversed; 1 of an image that is not in the archive"
    assert any(note.startswith(told) for note in json.loads((run / "run.json").read_text())["notes"])
    assert told in (run / "report.html").read_text()


def test_a_stage_that_was_not_asked_for_is_not_shown(audited: tuple[Path, str]) -> None:
    assert "\nmaps: " in audited[1]
    assert "\nsanity: " not in audited[1]


def test_no_output_and_no_log_tells_of_the_canary_patient(audited: tuple[Path, str]) -> None:
    folder, printed = audited
    private = {"catalogue.parquet"}  # its private columns are where paths belong
    looked_at = 0
    for root in (folder / "run", folder / ".lucency"):
        for path in root.rglob("*"):
            if path.is_file() and path.name not in private:
                data = path.read_bytes()
                assert not [word for word in _SECRETS if word.encode() in data], path
                looked_at += 1
    assert looked_at > 20
    assert not [word for word in _SECRETS if word in printed]
    for name in ("cases.parquet", "rejected.parquet", "rejected_boxes.parquet", "metrics.parquet"):
        text = str(pq.read_table(folder / "run" / name).to_pydict())
        assert not [word for word in _SECRETS if word in text]
    catalogue = pq.read_table(folder / "run" / "catalogue.parquet")
    public = catalogue.select([name for name in catalogue.column_names if not name.startswith("private_")])
    assert not [word for word in _SECRETS if word in str(public.to_pydict())]


def test_rays_own_logs_tell_nothing_of_the_canary_patient_either(
    audited: tuple[Path, str], sessions_before: set[Path]
) -> None:
    sessions = set(Path(tempfile.gettempdir(), "ray").glob("session_2*")) - sessions_before
    logs = [path for session in sessions for path in (session / "logs").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in logs) > 10_000, "the audit's session was not found"
    for path in logs:
        data = path.read_bytes()
        assert not [word for word in _SECRETS if word.encode() in data], path


def test_a_map_in_zarr_is_the_closed_form_of_the_models_own_weights(audited: tuple[Path, str]) -> None:
    folder = audited[0]
    rows = pq.read_table(folder / "run" / "catalogue.parquet").to_pylist()
    row = next(row for row in rows if row["private_location"] == "0000.png")
    module = DigitsNet().eval()
    module.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    pixels = decode_image((folder / "archive" / "0000.png").read_bytes(), format="png")
    with torch.no_grad():
        activation = module.features(preprocess([pixels], torch.device("cpu")))[0]
        predicted = int(module(preprocess([pixels], torch.device("cpu"))).argmax())
    expected = torch.einsum("f,fhw->hw", module.classifier.weight[predicted] / 64, activation).detach().numpy()
    maps = xarray.open_zarr(folder / "run" / "maps.zarr", consolidated=False)
    assert int(maps["classes"][row["row"], 0]) == predicted
    np.testing.assert_allclose(maps["grad-cam"][row["row"], 0], expected, rtol=2e-3, atol=1e-5)


def test_the_profile_through_ray_is_the_profile_computed_in_one_process(audited: tuple[Path, str]) -> None:
    folder = audited[0]
    profile = zarr.open_group(folder / "run" / "profile.zarr", mode="r")
    rows = pq.read_table(folder / "run" / "catalogue.parquet").to_pylist()
    explained = set(pq.read_table(folder / "run" / "cases.parquet")["id"].to_pylist())
    module = DigitsNet().eval()
    module.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    images = []
    for row in rows:
        if row["id"] in explained and "!/" not in row["private_location"]:
            payload = (folder / "archive" / row["private_location"]).read_bytes()
            images.append(decode_image(payload, format=row["format"]))
    images.append(decode_image((folder / "archive" / "0000.png").read_bytes(), format="png"))  # the one in the zip
    with torch.no_grad():
        pooled = module.features(preprocess(images, torch.device("cpu"))).double().sum((2, 3)).mean(0)
    expected = (module.classifier.weight.double() / 64 * pooled).T.detach().numpy()
    np.testing.assert_allclose(profile["importance/grad-cam/all"][...], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own, when it opens a database
def test_mlflow_holds_the_numbers_of_the_run(audited: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    folder = audited[0]
    client = MlflowClient(f"sqlite:///{folder / '.lucency' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("lucency")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.run_id == json.loads((folder / "run" / "run.json").read_text())["mlflow"]
    assert logged.data.metrics["images.explained"] == _IMAGES + 2


def test_all_formats_are_read_in_place(audited: tuple[Path, str]) -> None:
    rows = pq.read_table(audited[0] / "run" / "catalogue.parquet").to_pylist()
    assert {row["format"] for row in rows if row["row"] >= 0} == {"dicom", "png"}
    assert sum("more.zip!/" in row["private_location"] for row in rows) == 1
    assert not list((audited[0] / "archive").glob("more"))


def test_an_archive_without_an_image_is_refused_with_the_reasons(lucency: Command, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.txt").write_text("nothing")
    (tmp_path / "labels.csv").write_text("image,label\n")
    failed = lucency("audit", str(write_audit(tmp_path)), folder=tmp_path)
    assert failed.returncode == 1
    assert "holds no image that can be read" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.fixture(scope="module")
def odd(lucency: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of four: whole images, broken ones, and images of unequal sizes and formats."""
    folder = tmp_path_factory.mktemp("odd")
    archive = folder / "archive"
    archive.mkdir()
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        for number in range(4):
            Image.fromarray(random.integers(0, 256, (64, 64), np.uint8)).save(archive / f"{name}{number}.png")
            if name == "b":
                cut = (archive / f"b{number}.png").read_bytes()[:500]
                (archive / f"b{number}.png").write_bytes(cut)
    Image.fromarray(np.full((90, 40), 40_000, np.uint16)).save(archive / "c0.png")
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(archive / "c1.jpg")
    Image.fromarray(np.full((64, 64), 100, np.uint8)).save(archive / "c2.tif")
    config = write_audit(
        folder,
        archive__labels=None,
        explain__methods=["grad-cam"],
        explain__targets="all",
        engine__shard_images=4,
    )
    done = lucency("audit", str(config), "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"] == {"catalogued": 11, "explained": 7, "rejected": 4}
    return folder / "run"


def _mapped(run: Path) -> list[bool]:
    """Which images have finite maps of all ten classes."""
    maps = np.asarray(zarr.open_group(run / "maps.zarr", mode="r")["grad-cam"], np.float32)
    assert maps.shape == (11, 10, 8, 8)
    finite = np.isfinite(maps).reshape(11, -1)
    assert (finite.all(1) | ~finite.any(1)).all()
    return finite.all(1).tolist()


def test_unequal_sizes_and_16_bit_files_share_a_shard(odd: Path) -> None:
    assert _mapped(odd)[8:] == [True] * 3


def test_a_shard_of_which_every_image_is_rejected_is_done_and_the_others_are_explained(odd: Path) -> None:
    assert _mapped(odd)[:8] == [True] * 4 + [False] * 4
