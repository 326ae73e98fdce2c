"""An audit that is killed anywhere goes on where it stopped and ends with the same bytes."""

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.small_audits import (
    Command,
    differing,
    fingerprints,
    kill,
    model_actors,
    start_lucency,
    wait_for_manifests,
    write_archive,
    write_audit,
)
from workflows.audit import audit
from workflows.configuration_file import load
from workflows.progress import SilentProgress

_IMAGES = 60
_SHARDS = 8  # the last one holds 4 images
_SANITY = {"sanity": {"images": 2, "steps": 1}}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, _IMAGES)
    return folder


@pytest.fixture(scope="module")
def undisturbed(lucency: Command, archive: Path) -> dict[str, str]:
    """What an audit leaves when nothing goes wrong; on two workers, where the disturbed ones have one."""
    config = write_audit(archive, measures=_SANITY, run="undisturbed", engine__workers=2)
    done = lucency("audit", str(config), folder=archive)
    assert done.returncode == 0, done.stderr
    return fingerprints(archive / "undisturbed")


class _KillingAnActor(SilentProgress):
    """Kills the only actor of a stage below this process when it has done a shard and has others to do."""

    def __init__(self, run: Path, stage: str) -> None:
        self._run = run
        self._stage = stage
        self.victims: list[int] = []
        self._before: int | None = None

    def advance(self, stage: str, count: int = 1) -> None:
        if stage != self._stage or self.victims:
            return
        if self._before is None:  # what was done before, told at once when the stage begins
            self._before = count
        elif count:
            (victim,) = model_actors(psutil.Process())
            victim.kill()
            assert _committed(self._run, stage) < _SHARDS
            self.victims.append(victim.pid)


def test_drivers_and_actors_killed_in_each_pass_cost_no_finished_shard_no_image_and_no_bit(
    archive: Path, undisturbed: dict[str, str]
) -> None:
    """Each driver but the last, this process, is killed; the second and the last go on although their actor is."""
    run = archive / "disturbed"
    slow = write_audit(archive, measures=_SANITY, run="disturbed", slow=0.15)
    first = start_lucency("audit", str(slow), folder=archive)
    wait_for_manifests(run, "profile", 2, first)
    kill(first)
    finished = _finished(run, "profile")

    second = start_lucency("audit", str(slow), folder=archive)
    _kill_an_actor(run, "profile", second)
    wait_for_manifests(run, "maps", 2, second)
    kill(second)
    finished = _finished(run, "maps") | finished  # of what was done before, the moment of then

    killing = _KillingAnActor(run, "maps")
    audit(load(slow, ()), killing, str(archive))
    assert killing.victims
    assert all(path.stat().st_mtime_ns == moment for path, moment in finished.items())
    assert differing(run, undisturbed) == []


def _finished(run: Path, stage: str) -> dict[Path, int]:
    """All manifests while a stage is not done, with the moment each was written."""
    assert 0 < _committed(run, stage) < _SHARDS
    manifests = [path for path in (run / ".ledger").rglob("*.json") if "lock" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in manifests}


def _committed(run: Path, stage: str) -> int:
    return len(list((run / ".ledger" / stage).glob("*.json")))


def _kill_an_actor(run: Path, stage: str, process: "subprocess.Popen[str]") -> None:
    """Wait until this driver has committed a shard of the stage, and kill the actor that has the others to do."""
    before = _committed(run, stage)
    assert before < len(wait_for_manifests(run, stage, before + 1, process)) < _SHARDS
    (victim,) = model_actors(psutil.Process(process.pid))
    victim.kill()


def test_a_finished_run_says_so_and_does_nothing(lucency: Command, archive: Path, undisturbed: dict[str, str]) -> None:
    again = lucency("audit", str(archive / "undisturbed.yaml"), "--json", folder=archive)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["state"] == "already-done"
    assert differing(archive / "undisturbed", undisturbed) == []


def test_a_run_of_another_configuration_is_refused_by_the_key_that_differs(
    lucency: Command, archive: Path, undisturbed: dict[str, str]
) -> None:
    refused = lucency("audit", str(archive / "undisturbed.yaml"), "--set", "explain.map=input", folder=archive)
    assert refused.returncode == 1
    assert "explain.map: the run has 'native', the configuration says 'input'" in refused.stderr
    assert differing(archive / "undisturbed", undisturbed) == []
