"""What an attacker, or an accident, puts into an archive costs itself, with a reason, and nothing else."""

import gzip
import io
import os
import resource
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.archive import Archive, ArchiveCaps, ArchiveFile, Refused
from storage.errors import ArchiveError, ImageError
from tests.storage.sample_files import contained, tarred, zipped

CANARY = "MUSTERMANN"
KINDS = ("zip", "tar", "tar.gz")


def _archive(folder: Path, name: str, payload: bytes, **caps: float) -> Archive:
    (folder / name).write_bytes(payload)
    (folder / "good.dcm").write_bytes(b"good")
    return Archive.open(str(folder), caps=ArchiveCaps(**caps))  # type: ignore[arg-type]


def _refused(archive: Archive) -> dict[str, str]:
    """Reasons by location; on the way, the good neighbour must be there and no reason may name anything."""
    found = list(archive.files())
    assert any(file.location == "good.dcm" for file in found if isinstance(file, ArchiveFile))
    refused = {item.location: item.reason for item in found if isinstance(item, Refused)}
    assert not any(CANARY in reason for reason in refused.values())
    return refused


def _kept(archive: Archive) -> dict[str, bytes | ImageError]:
    return dict(archive.read(file.location for file in archive.files() if isinstance(file, ArchiveFile)))


def test_a_zip_bomb_is_refused_by_its_ratio_and_its_neighbours_are_not(tmp_path: Path) -> None:
    bomb = zipped({f"{CANARY}.dcm": bytes(20 << 20), "fine.dcm": b"fine"})
    archive = _archive(tmp_path, "x.zip", bomb)
    refused = _refused(archive)
    assert list(refused) == [f"x.zip!/{CANARY}.dcm"]
    assert "200 times its size" in refused[f"x.zip!/{CANARY}.dcm"]
    assert _kept(archive)["x.zip!/fine.dcm"] == b"fine"
    read = dict(archive.read([f"x.zip!/{CANARY}.dcm"]))
    assert isinstance(read[f"x.zip!/{CANARY}.dcm"], ImageError)


def test_a_small_blank_image_is_no_bomb_however_well_it_packs(tmp_path: Path) -> None:
    archive = _archive(tmp_path, "x.zip", zipped({"blank.dcm": bytes(1 << 20)}))
    assert _refused(archive) == {}


def test_a_compressed_tar_that_unpacks_absurdly_is_stopped_while_it_does(tmp_path: Path) -> None:
    bomb = tarred({"fine.dcm": os.urandom(5000), "big.dcm": bytes(64 << 20), "after.dcm": b"x"}, mode="w:gz")
    archive = _archive(tmp_path, "x.tar.gz", bomb)
    refused = _refused(archive)
    assert list(refused) == ["x.tar.gz"]
    assert "like a bomb" in refused["x.tar.gz"]
    kept = _kept(archive)
    assert isinstance(kept["x.tar.gz!/fine.dcm"], bytes)
    assert isinstance(kept["x.tar.gz!/big.dcm"], ImageError)


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_header_as_large_as_the_memory_is_not_read(tmp_path: Path, packed: bool) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 900 << 20
    name = "x.tar.gz" if packed else "x.tar"
    with gzip.open(tmp_path / name, "wb", compresslevel=1) if packed else open(tmp_path / name, "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        if packed:
            for _ in range(100):
                file.write(os.urandom(1 << 10) + bytes(1 << 20))
        else:
            file.truncate(950 << 20)  # sparse on disk
    archive = _archive(tmp_path, "unrelated.dcm", b"", ratio=2000.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert _refused(archive) == {name: "the tar container has a header of absurd size"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_over_the_size_cap_is_refused_before_it_is_unpacked(tmp_path: Path, kind: str) -> None:
    payload = contained(kind, {"big.dcm": os.urandom(3000), "small.dcm": b"s"})
    archive = _archive(tmp_path, f"x.{kind}", payload, file_bytes=2000)
    assert _refused(archive) == {f"x.{kind}!/big.dcm": "the file has 3000 bytes, more than the 2000 allowed"}
    assert _kept(archive)[f"x.{kind}!/small.dcm"] == b"s"


def test_a_plain_file_over_the_size_cap_is_not_read(tmp_path: Path) -> None:
    archive = _archive(tmp_path, "big.dcm", bytes(3000), file_bytes=2000)
    assert isinstance(_kept(archive)["big.dcm"], ImageError)


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_with_too_many_files_is_refused(tmp_path: Path, kind: str) -> None:
    payload = contained(kind, {f"{number}.dcm": b"" for number in range(6)})
    archive = _archive(tmp_path, f"x.{kind}", payload, members=5)
    assert _refused(archive) == {f"x.{kind}": "the container holds more than 5 files"}


@pytest.mark.parametrize("kind", KINDS)
def test_containers_nested_deeper_than_allowed_are_not_opened(tmp_path: Path, kind: str) -> None:
    payload = contained(kind, {"image.dcm": b"i"})
    for level in ("second", "first"):
        payload = contained(kind, {f"{level}.{kind}": payload})
    location = f"x.{kind}!/first.{kind}"
    assert _refused(_archive(tmp_path, f"x.{kind}", payload, nesting=1)) == {
        f"{location}!/second.{kind}": "containers are nested more than 1 deep"
    }
    assert f"{location}!/second.{kind}!/image.dcm" in _kept(_archive(tmp_path, f"x.{kind}", payload, nesting=2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../up.dcm", "/etc/absolute.dcm", "a/../../up.dcm", "C:/windows.dcm", "x.zip!/trick"])
def test_names_that_lead_out_of_a_container_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    archive = _archive(tmp_path, f"x.{kind}", contained(kind, {name: b"x", "fine.dcm": b"f"}))
    assert list(_refused(archive).values()) == ["its name leads out of the container"]
    assert _kept(archive) == {"good.dcm": b"good", f"x.{kind}!/fine.dcm": b"f"}


@pytest.mark.parametrize("location", ["../secret.dcm", "x/../../secret.dcm"])
def test_a_location_that_leads_out_of_the_folder_is_not_read(tmp_path: Path, location: str) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "secret.dcm").write_bytes(b"secret")
    archive = _archive(tmp_path / "archive", "x", b"")
    assert isinstance(dict(archive.read([location]))[location], ImageError)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_occurs_twice_in_a_container_is_refused_once(tmp_path: Path, kind: str) -> None:
    sink = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w") as container:
            for name in ("twice.dcm", "once.dcm", "twice.dcm", "in.zip", "in.zip"):
                container.writestr(name, zipped({"member.dcm": b"m"}) if name == "in.zip" else b"1")
    else:
        with tarfile.open(fileobj=sink, mode="w:gz" if kind == "tar.gz" else "w") as tar:
            for name in ("twice.dcm", "once.dcm", "twice.dcm", "in.zip", "in.zip"):
                payload = zipped({"member.dcm": b"m"}) if name == "in.zip" else b"1"
                entry = tarfile.TarInfo(name)
                entry.size = len(payload)
                tar.addfile(entry, io.BytesIO(payload))
    archive = _archive(tmp_path, f"x.{kind}", sink.getvalue())
    reason = "its name occurs more than once in its container"
    assert _refused(archive) == {f"x.{kind}!/twice.dcm": reason, f"x.{kind}!/in.zip": reason}
    assert _kept(archive) == {"good.dcm": b"good", f"x.{kind}!/once.dcm": b"1"}


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    payload = bytearray(zipped({f"{CANARY}.dcm": b"secret"}))
    for signature, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = payload.index(signature) + flags_at
        payload[at] |= 1
    assert _refused(_archive(tmp_path, "x.zip", bytes(payload))) == {f"x.zip!/{CANARY}.dcm": "it is encrypted"}


def test_an_unknown_packing_method_is_refused(tmp_path: Path) -> None:
    payload = bytearray(zipped({"a.dcm": b"abc"}))
    for signature, method_at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        struct.pack_into("<H", payload, payload.index(signature) + method_at, 97)
    assert "not supported" in _refused(_archive(tmp_path, "x.zip", bytes(payload)))["x.zip!/a.dcm"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_and_devices_inside_containers_are_not_followed(tmp_path: Path, kind: str) -> None:
    sink = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w") as container:
            link = zipfile.ZipInfo("link.dcm")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            container.writestr(link, "/etc/passwd")
    else:
        with tarfile.open(fileobj=sink, mode="w") as tar:
            for name, type_ in (
                ("link.dcm", tarfile.SYMTYPE),
                ("hard.dcm", tarfile.LNKTYPE),
                ("pipe", tarfile.FIFOTYPE),
            ):
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = type_, "/etc/passwd"
                tar.addfile(entry)
    refused = _refused(_archive(tmp_path, f"x.{kind}", sink.getvalue()))
    assert len(refused) == (1 if kind == "zip" else 3)
    assert all("link" in reason or "pipe" in reason for reason in refused.values())


def test_links_out_of_the_archive_are_refused_and_links_within_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    (tmp_path / f"{CANARY}.dcm").write_bytes(b"outside")
    (folder / "out.dcm").symlink_to(tmp_path / f"{CANARY}.dcm")
    (folder / "nowhere.dcm").symlink_to(folder / "missing")
    (folder / "loop").symlink_to(folder)
    (folder / "in.dcm").symlink_to(folder / "good.dcm")
    os.mkfifo(folder / "pipe")
    archive = _archive(folder, "plain.dcm", b"p")
    assert _refused(archive) == {
        "loop": "a link to a folder, which is not followed",
        "nowhere.dcm": "a link that leads nowhere",
        "out.dcm": "a link that leads out of the archive",
        "pipe": "a device, pipe or socket, not a file",
    }
    assert _kept(archive)["in.dcm"] == b"good"


@pytest.mark.parametrize("kind", KINDS)
def test_a_container_that_ends_early_or_is_none_is_one_refusal(tmp_path: Path, kind: str) -> None:
    payload = contained(kind, {"a.dcm": os.urandom(50_000), "b.dcm": os.urandom(50_000)})
    cut = _archive(tmp_path, f"cut.{kind}", payload[: len(payload) * 3 // 4])
    (tmp_path / f"none.{kind}").write_bytes(b"not a container at all" * 100)
    refused = _refused(cut)
    assert set(refused) == {f"cut.{kind}", f"none.{kind}"}
    assert all("cannot be read" in reason for reason in refused.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_container_as_the_whole_archive_is_an_error(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"none.{kind}").write_bytes(b"not a container at all" * 100)
    with pytest.raises(ArchiveError, match="cannot be read"):
        list(Archive.open(str(tmp_path / f"none.{kind}")).files())


def test_damaged_bytes_of_one_member_are_its_own_reason(tmp_path: Path) -> None:
    payload = bytearray(zipped({f"{CANARY}.dcm": os.urandom(50_000), "fine.dcm": b"f"}))
    payload[25_000:25_020] = bytes(20)
    kept = _kept(_archive(tmp_path, "x.zip", bytes(payload)))
    assert kept["x.zip!/fine.dcm"] == b"f"
    bad = kept[f"x.zip!/{CANARY}.dcm"]
    assert isinstance(bad, ImageError)
    assert CANARY not in str(bad)


def test_what_lies_before_the_damage_of_a_compressed_tar_is_kept(tmp_path: Path) -> None:
    payload = bytearray(tarred({"before.dcm": os.urandom(2 << 20), "after.dcm": os.urandom(2 << 20)}, mode="w:gz"))
    payload[3 << 20 : (3 << 20) + 2000] = bytes(2000)
    archive = _archive(tmp_path, "x.tar.gz", bytes(payload))
    assert "x.tar.gz" in _refused(archive)
    assert len(_kept(archive)["x.tar.gz!/before.dcm"]) == 2 << 20  # type: ignore[arg-type]


def test_a_folder_named_like_a_step_into_a_container_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.zip!").mkdir()
    (tmp_path / "x.zip!" / "a.dcm").write_bytes(b"a")
    assert list(_refused(_archive(tmp_path, "plain.dcm", b""))) == ["x.zip!/a.dcm"]


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(KINDS), flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8))
def test_any_damage_to_a_container_gives_files_and_reasons_each_once(
    tmp_path_factory: pytest.TempPathFactory, kind: str, flips: list[tuple[float, int]]
) -> None:
    files = {"a.dcm": b"1" * 300, "in.zip": zipped({"b.dcm": b"2"}), "in.tar": tarred({"c.dcm": b"3"})}
    payload = bytearray(contained(kind, files))
    for where, value in flips:
        payload[int(where * (len(payload) - 1))] = value
    archive = _archive(tmp_path_factory.mktemp("damaged"), f"x.{kind}", bytes(payload))
    locations = [found.location for found in archive.files()]
    assert len(set(locations)) == len(locations)
    assert all(isinstance(item, bytes | ImageError) for item in _kept(archive).values())


def test_a_zip_member_without_a_name_is_still_one_file(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as container:
        nameless = zipfile.ZipInfo("x")
        nameless.filename = ""
        container.writestr(nameless, b"nameless")
    archive = _archive(tmp_path, "x.zip", sink.getvalue())
    assert len(_kept(archive) | _refused(archive)) == 2
