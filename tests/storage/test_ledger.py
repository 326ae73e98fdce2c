"""The ledger: done means that the manifest is there, and one audit at a time owns a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import RunError
from storage.ledger import Ledger, Manifest, hold
from storage.objects import Objects
from storage.records import Rejection

_LOCK = ".ledger/lock.json"


@pytest.fixture
def run(tmp_path: Path) -> Objects:
    return Objects.open(str(tmp_path / "run"))


def test_a_manifest_comes_back_as_it_was_committed(run: Objects) -> None:
    manifest = Manifest("profile", 3, 7, (Rejection("ab", "decode", "truncated"),), notes=("halved",))
    Ledger(run, "profile").commit(manifest, {"npz": b"bytes"})
    (back,) = Ledger(run, "profile").done().values()
    assert (back.shard, back.images, back.rejected, back.notes) == (3, 7, manifest.rejected, ("halved",))
    assert Ledger(run, "profile").output(3, "npz") == b"bytes"


def test_an_output_without_a_manifest_is_not_done(run: Objects) -> None:
    ledger = Ledger(run, "profile")
    run.put(ledger.key(0, "npz"), b"half of it")
    assert ledger.done() == {}


def test_stages_whose_names_begin_alike_keep_apart(run: Objects) -> None:
    Ledger(run, "maps-created").commit(Manifest("maps-created", 0, 0))
    assert Ledger(run, "maps").done() == {}


def test_a_changed_output_is_refused(run: Objects) -> None:
    ledger = Ledger(run, "profile")
    ledger.commit(Manifest("profile", 0, 1), {"npz": b"bytes"})
    run.put(ledger.key(0, "npz"), b"other")
    with pytest.raises(RunError, match="differ from the manifest"):
        ledger.output(0, "npz")


def test_a_second_audit_is_refused_while_the_first_lives(run: Objects) -> None:
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from storage.ledger import hold; from storage.objects import Objects\n"
            "with hold(Objects.open(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
            run.location,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process {other.pid}"), hold(run):
        pass
    other.kill()
    other.communicate()
    with hold(run):  # the lock of a dead process is taken over
        assert run.exists(_LOCK)
    assert not run.exists(_LOCK)


def test_the_lock_of_another_host_counts_until_its_heart_stops(run: Objects) -> None:
    lock = {"host": "elsewhere", "pid": 1, "boot": "x", "beat": 0.0}
    run.put(_LOCK, json.dumps({**lock, "beat": 1e12}).encode())
    with pytest.raises(RunError, match="elsewhere"), hold(run):
        pass
    run.put(_LOCK, json.dumps(lock).encode())
    with hold(run):
        pass


def test_the_lock_is_given_back_after_a_failure(run: Objects) -> None:
    with pytest.raises(ZeroDivisionError), hold(run):
        raise ZeroDivisionError
    assert not run.exists(_LOCK)
