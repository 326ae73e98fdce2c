"""An audit that is killed anywhere goes on where it stopped and ends with the same bytes."""

import json
from pathlib import Path

import pytest

from tests.small_audits import (
    differing,
    fingerprints,
    kill,
    lucency,
    model_actors,
    start_lucency,
    wait_for_manifests,
    write_archive,
    write_audit,
)

_IMAGES = 60
_SHARDS = 8  # the last one holds 4 images
_SANITY = {"sanity": {"images": 2, "steps": 1}}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, _IMAGES)
    return folder


@pytest.fixture(scope="module")
def undisturbed(archive: Path) -> dict[str, str]:
    """What an audit leaves when nothing goes wrong; on two workers, where the disturbed ones have one."""
    done = lucency("audit", str(write_audit(archive, measures=_SANITY, run="undisturbed")), folder=archive)
    assert done.returncode == 0, done.stderr
    return fingerprints(archive / "undisturbed")


def test_a_driver_killed_in_each_pass_costs_no_finished_shard_and_no_bit(
    archive: Path, undisturbed: dict[str, str]
) -> None:
    run = archive / "driver"
    committed: dict[Path, int] = {}
    for stage in ("profile", "maps"):
        slow = write_audit(archive, measures=_SANITY, run="driver", slow=0.15, engine__workers=1)
        process = start_lucency("audit", str(slow), folder=archive)
        wait_for_manifests(run, stage, 2, process)
        kill(process)
        assert len(list((run / ".ledger" / stage).glob("*.json"))) < _SHARDS
        manifests = [path for path in (run / ".ledger").rglob("*.json") if "lock" not in path.parts]
        assert all(path.stat().st_mtime_ns == moment for path, moment in committed.items())
        committed = {path: path.stat().st_mtime_ns for path in manifests}
    resumed = lucency(
        "audit", str(write_audit(archive, measures=_SANITY, run="driver", engine__workers=1)), folder=archive
    )
    assert resumed.returncode == 0, resumed.stderr
    assert all(path.stat().st_mtime_ns == moment for path, moment in committed.items())
    assert differing(run, undisturbed) == []


def test_an_actor_killed_in_each_pass_costs_no_image_and_no_bit(archive: Path, undisturbed: dict[str, str]) -> None:
    slow = write_audit(archive, measures=_SANITY, run="actor", slow=0.15, engine__workers=1)
    process = start_lucency("audit", str(slow), folder=archive)
    for stage in ("profile", "maps"):
        manifests = wait_for_manifests(archive / "actor", stage, 1, process)
        assert len(manifests) < _SHARDS  # the actor has work left
        victims = model_actors(process, stage)
        assert victims
        victims[0].kill()
    assert process.wait(timeout=240) == 0, (archive / "log").read_text()
    assert differing(archive / "actor", undisturbed) == []


def test_a_finished_run_says_so_and_does_nothing(archive: Path, undisturbed: dict[str, str]) -> None:
    again = lucency("audit", str(archive / "undisturbed.yaml"), "--json", folder=archive)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["state"] == "already-done"
    assert differing(archive / "undisturbed", undisturbed) == []


def test_a_run_of_another_configuration_is_refused_by_the_key_that_differs(
    archive: Path, undisturbed: dict[str, str]
) -> None:
    refused = lucency("audit", str(archive / "undisturbed.yaml"), "--set", "explain.map=input", folder=archive)
    assert refused.returncode == 1
    assert "explain.map: the run has 'native', the configuration says 'input'" in refused.stderr
    assert differing(archive / "undisturbed", undisturbed) == []
