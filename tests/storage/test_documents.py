"""Files that the configuration names, fetched from a web server that may not be to be trusted with it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from storage.documents import read_document
from storage.errors import ConfigurationError


@contextmanager
def serving(announced: int | None, sent: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if announced is not None:
                self.send_header("Content-Length", str(announced))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/labels.csv?signature=secret"
        server.shutdown()


@pytest.mark.parametrize("announced", [13, None])
def test_a_file_comes_whole(announced: int | None) -> None:
    with serving(announced, b"id,label\na,1\n") as url:
        assert read_document(url, "archive.labels.file") == b"id,label\na,1\n"


def test_a_download_that_ends_early_is_not_taken_for_whole() -> None:
    with serving(100, b"id,label\na,1\n") as url, pytest.raises(ConfigurationError, match="13 of 100 bytes") as refusal:
        read_document(url, "archive.labels.file")
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("announced", [13, None])
def test_a_file_beyond_the_limit_is_refused(announced: int | None) -> None:
    with (
        serving(announced, b"id,label\na,1\n") as url,
        pytest.raises(ConfigurationError, match="more than the 5 bytes"),
    ):
        read_document(url, "archive.labels.file", limit=5)
