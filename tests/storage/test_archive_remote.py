"""An archive in an object store gives the same files as the same archive on disk."""

from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from storage.archive import Archive, ArchiveFile, Refused
from storage.documents import read_document
from storage.errors import ArchiveError, ConfigurationError, ImageError
from tests.storage.sample_files import contained, zipped

FILES = {"a.dcm": b"first", "deep/b.dcm": b"second" * 50_000, "deep/er/c.png": b""}
KINDS = ("zip", "tar", "tar.gz")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
    client.create_bucket(Bucket="archive")
    for name, payload in FILES.items():
        client.put_object(Bucket="archive", Key=f"folder/{name}", Body=payload)
    for kind in KINDS:
        client.put_object(Bucket="archive", Key=f"folder/x.{kind}", Body=contained(kind, FILES))
        client.put_object(Bucket="archive", Key=f"alone/x.{kind}", Body=contained(kind, FILES))
    client.put_object(Bucket="archive", Key="many/nested.zip", Body=zipped({"in.zip": zipped(FILES)}))
    for number in range(100):
        client.put_object(Bucket="archive", Key=f"many/{number}.dcm", Body=str(number).encode())
    yield "s3://archive"
    patch.undo()
    server.stop()


def _names(archive: Archive) -> list[str]:
    found = list(archive.files())
    assert not any(isinstance(item, Refused) for item in found)
    return sorted(item.location for item in found if isinstance(item, ArchiveFile))


def test_a_prefix_gives_files_and_members_by_their_path_below_it(bucket: str) -> None:
    archive = Archive.open(f"{bucket}/folder")
    expected = {**FILES, **{f"x.{kind}!/{name}": payload for kind in KINDS for name, payload in FILES.items()}}
    assert dict(archive.read(_names(archive))) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_remote_container_as_the_archive(bucket: str, kind: str) -> None:
    archive = Archive.open(f"{bucket}/alone/x.{kind}")
    assert dict(archive.read(_names(archive))) == FILES


def test_many_small_objects_are_read_each_under_its_own_name(bucket: str) -> None:
    archive = Archive.open(f"{bucket}/many", include=["*.dcm"])
    read = dict(archive.read([f"{number}.dcm" for number in range(100)]))
    assert read == {f"{number}.dcm": str(number).encode() for number in range(100)}
    heads = {
        location: stream.read(10) if not isinstance(stream, ImageError) else stream
        for location, stream in archive.streams(read)
    }
    assert heads == read


def test_a_missing_object_is_its_own_reason(bucket: str) -> None:
    read = dict(Archive.open(f"{bucket}/folder").read(["MUSTERMANN.dcm", "a.dcm", "gone.zip!/x.dcm"]))
    assert read["a.dcm"] == b"first"
    for name in ("MUSTERMANN.dcm", "gone.zip!/x.dcm"):
        assert isinstance(read[name], ImageError)
        assert "MUSTERMANN" not in str(read[name])


def test_a_missing_bucket_ends_the_audit_without_naming_it(bucket: str) -> None:
    with pytest.raises(ArchiveError) as caught:
        list(Archive.open("s3://nowhere/mustermann").files())
    assert "mustermann" not in str(caught.value)


def test_label_files_are_read_by_their_address(bucket: str) -> None:
    assert read_document(f"{bucket}/folder/a.dcm", "archive.labels.file") == b"first"


def test_a_missing_label_file_is_looked_for_under_its_key(bucket: str) -> None:
    with pytest.raises(ConfigurationError, match=r"archive.labels.file: there is no such file"):
        read_document(f"{bucket}/folder/none.csv", "archive.labels.file")


def test_an_address_no_store_opens_is_refused() -> None:
    with pytest.raises(ArchiveError, match="s3://"):
        list(Archive.open("gopher://example.org/x").files())
