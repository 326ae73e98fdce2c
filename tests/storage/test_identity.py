"""Ids are the same under the same key, and say nothing without it."""

import pickle
from pathlib import Path

import pytest

from storage.errors import ConfigurationError
from storage.identity import Identity

KEY = b"k" * 32


def test_the_same_key_gives_the_same_ids_and_another_key_gives_others() -> None:
    assert Identity(KEY).image("a/b.dcm", 3) == Identity(KEY).image("a/b.dcm", 3)
    assert Identity(KEY).image("a/b.dcm", 3) != Identity(b"x" * 32).image("a/b.dcm", 3)
    assert Identity.load() != Identity.load()


def test_ids_are_32_hex_digits() -> None:
    for found in (Identity(KEY).image("a"), Identity(KEY).patient("a")):
        assert len(found) == 32
        int(found, 16)


def test_frames_files_and_patients_never_share_an_id() -> None:
    identity = Identity(KEY)
    ids = [
        identity.image("a"),
        identity.image("a", 1),
        identity.image("a", 11),
        identity.image("a1", 1),
        identity.patient("a"),
        identity.patient(b"image\0a\x000"),
    ]
    assert len(set(ids)) == len(ids)


def test_a_patient_is_the_same_from_a_header_and_from_a_label_file() -> None:
    assert Identity(KEY).patient(b"P17 ") == Identity(KEY).patient("P17") == Identity(KEY).patient(b"P17\0")


def test_the_key_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(KEY + b"\n")
    monkeypatch.setenv("AUDIT_KEY", KEY.decode())
    assert Identity.load(file=str(tmp_path / "key")) == Identity.load(env="AUDIT_KEY") == Identity(KEY)


def test_a_missing_or_short_key_is_refused_without_showing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "short").write_bytes(b"hunter2")
    monkeypatch.setenv("SHORT", "hunter2")
    monkeypatch.delenv("UNSET", raising=False)
    for faulty, expected in (
        ({"file": str(tmp_path / "none")}, "archive.key.file: there is no such file"),
        ({"file": str(tmp_path / "short")}, "16 bytes or more, got 7"),
        ({"env": "SHORT"}, "16 bytes or more, got 7"),
        ({"env": "UNSET"}, "UNSET is not set"),
    ):
        with pytest.raises(ConfigurationError, match=expected) as caught:
            Identity.load(**faulty)
        assert "hunter2" not in str(caught.value)


def test_the_key_is_in_no_printout_but_travels_to_workers() -> None:
    identity = Identity(b"very secret, very long")
    assert "secret" not in repr(identity)
    assert pickle.loads(pickle.dumps(identity)) == identity
