"""The ledger: done means that the manifest is there, and one audit at a time owns a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from storage.errors import RunError
from storage.ledger import Ledger, Manifest, hold
from storage.objects import Objects
from storage.records import Note, Rejection

_LOCKS = ".ledger/lock"


@pytest.fixture
def run(tmp_path: Path) -> Objects:
    return Objects(str(tmp_path / "run"))


def test_a_manifest_comes_back_as_it_was_committed(run: Objects) -> None:
    manifest = Manifest(
        "profile", 3, 7, (Rejection("ab", "decode", "truncated"),), notes=(Note("halved"), Note("off by {}", 0.5))
    )
    Ledger(run, "profile").commit(manifest, {"npz": b"bytes"})
    (back,) = Ledger(run, "profile").done().values()
    assert (back.shard, back.images, back.rejected, back.notes) == (3, 7, manifest.rejected, manifest.notes)
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
            "with hold(Objects(sys.argv[1])): print('held', flush=True); sys.stdin.read()",
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
        assert run.list(_LOCKS) == [f"{_LOCKS}/00000001.json"]
    assert run.list(_LOCKS) == []


def test_the_lock_of_another_host_counts_until_its_heart_stops(run: Objects) -> None:
    lock = {"host": "elsewhere", "pid": 1, "space": "x", "started": "1", "beat": 0.0}
    run.put(f"{_LOCKS}/00000007.json", json.dumps({**lock, "beat": 1e12}).encode())
    with pytest.raises(RunError, match="elsewhere"), hold(run):
        pass
    run.put(f"{_LOCKS}/00000007.json", json.dumps(lock).encode())
    with hold(run):
        assert run.list(_LOCKS) == [f"{_LOCKS}/00000008.json"]


def test_the_lock_is_given_back_after_a_failure(run: Objects) -> None:
    with pytest.raises(ZeroDivisionError), hold(run):
        raise ZeroDivisionError
    assert run.list(_LOCKS) == []


def test_another_process_under_a_dead_holders_number_is_not_taken_for_it(run: Objects) -> None:
    with hold(run):
        (key,) = run.list(_LOCKS)
        lock = json.loads(run.get(key))
    run.put(key, json.dumps({**lock, "started": "1"}).encode())  # this process's number, another start
    with hold(run):
        pass


def test_of_two_that_take_over_a_dead_lock_one_is_refused(run: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = {"host": "elsewhere", "pid": 1, "space": "x", "started": "1", "beat": 0.0}
    run.put(f"{_LOCKS}/00000000.json", json.dumps(dead).encode())
    first_list = run.list
    raced = []

    def list_then_lose_the_race(prefix: str = "") -> list[str]:
        found = first_list(prefix)
        if not raced:
            raced.append(True)
            holder.__enter__()  # another audit takes over between our look and our put
        return found

    holder = hold(Objects(run.location))
    monkeypatch.setattr(run, "list", list_then_lose_the_race)
    with pytest.raises(RunError, match="another audit"), hold(run):
        pass
    holder.__exit__(None, None, None)
