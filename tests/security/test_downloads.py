"""Downloads end: by the size announced, by a limit, by time, and they are led to no other kind of address."""

import gzip
import http.server
import resource
import threading
import time

import aiohttp
import pytest

from data_prep.sources.base import Raw, Row
from data_prep.sources.tables import TableReader
from dist_train.data.addresses import TooLargeError, check_address, download, read_address
from dist_train.data.manifest import Shard
from dist_train.data.reject import Reject
from dist_train.data.remote import CachePolicy, Remote, ShardCache
from dist_train.data.shards import BadSampleError
from dist_train.errors import UserError, WorkError

BLOCK = bytes(1 << 16)
MB = 1 << 20
BOMB = gzip.compress(bytes(200 * MB), 1)  # less than a megabyte


class Handler(http.server.BaseHTTPRequestHandler):
    """Misbehaves as the path says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        try:
            getattr(self, self.path.strip("/").partition(".")[0].partition("/")[0])()
        except (ConnectionError, TimeoutError):
            self.server.broken_off += 1
        self.close_connection = True

    def begin(self, status=200, **headers) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def endless(self) -> None:
        self.begin()
        while True:
            self.wfile.write(BLOCK)

    def more(self) -> None:
        """More than is announced: nothing of it may be taken for the next answer."""
        self.begin(Content_Length="10")
        self.wfile.write(b"0123456789" + b"HTTP/1.1 200 OK\r\n\r\nlies" * 10)

    def fewer(self) -> None:
        self.begin(Content_Length="1000")
        self.wfile.write(b"0123456789")

    def claims(self) -> None:
        self.begin(Content_Length=str(1 << 50))
        while True:
            self.wfile.write(BLOCK)

    def bomb(self) -> None:
        self.begin(Content_Length=str(len(BOMB)), Content_Encoding="gzip")
        self.wfile.write(BOMB)

    def small(self) -> None:
        data = gzip.compress(b"text " * 100)
        self.begin(Content_Length=str(len(data)), Content_Encoding="gzip")
        self.wfile.write(data)

    def drip(self) -> None:
        self.begin(Content_Length="100000")
        for _ in range(1000):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def heads(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1000):
            self.wfile.write(b"X-%d: x\r\n" % number)
            time.sleep(0.05)

    def file(self) -> None:
        self.begin(302, Location="file:///etc/passwd", Content_Length="0")

    def ftp(self) -> None:
        self.begin(302, Location="ftp://127.0.0.1/x", Content_Length="0")

    def loop(self) -> None:
        self.begin(302, Location="/loop", Content_Length="0")

    def hop(self) -> None:
        self.begin(302, Location="/small", Content_Length="0")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_) -> None:
        """Nothing: a client that breaks off is what the tests are about."""


@pytest.fixture
def server():
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked, server.broken_off = [], 0
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def brief(monkeypatch):
    monkeypatch.setattr("dist_train.data.remote._FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("data_prep.sources.tables._PAUSES_S", (0.01, 0.01))


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("kind", ["endless", "claims", "bomb"])
def test_no_more_is_read_than_the_limit(server, tmp_path, kind):
    before = peak_bytes()
    with pytest.raises(TooLargeError, match="more than 1048576 bytes"):
        read_address(f"{server.url}/{kind}", MB, 60)
    with pytest.raises(TooLargeError, match="more than 1048576 bytes"):
        download(f"{server.url}/{kind}", tmp_path / "x", MB, 60)
    assert (tmp_path / "x").stat().st_size < 64 * MB
    assert peak_bytes() - before < 300 * MB


@pytest.mark.parametrize("kind", ["drip", "heads"])
def test_a_server_that_drips_is_given_up(server, tmp_path, kind):
    begin = time.monotonic()
    for transfer in (
        lambda: read_address(f"{server.url}/{kind}", MB, 0.5),
        lambda: download(f"{server.url}/{kind}", tmp_path / "x", MB, 0.5),
    ):
        with pytest.raises(TimeoutError):
            transfer()
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("kind", ["file", "ftp", "loop"])
def test_redirects_lead_to_http_alone_and_end(server, kind):
    with pytest.raises(Exception, match=r"(?i)redirect|file:|ftp:|loop") as refused:
        read_address(f"{server.url}/{kind}", MB, 60)
    assert "root:" not in str(refused.value)
    assert len(server.asked) <= 10


def test_a_compressed_answer_and_a_redirect_to_it_are_read(server):
    assert read_address(f"{server.url}/small", MB, 60) == b"text " * 100
    assert read_address(f"{server.url}/hop", MB, 60) == b"text " * 100


def test_an_answer_is_as_long_as_it_says(server):
    # aiohttp refuses the surplus if it comes in the same read as the head, and leaves it if it comes later.
    try:
        content = read_address(f"{server.url}/more", MB, 60)
    except aiohttp.ClientResponseError:
        content = b"0123456789"
    assert content == b"0123456789"
    with pytest.raises(Exception, match=r"(?i)payload"):
        read_address(f"{server.url}/fewer", MB, 60)


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "local:///etc/passwd", "reference://x", "python://x", "memory://x", "ftp://127.0.0.1/x",
     "sftp://127.0.0.1/x", "zip::http://127.0.0.1/x.zip", "simplecache::http://127.0.0.1/x", "data:text/plain,x",
     "filecache::file:///etc/passwd", "HTTP://127.0.0.1/x", "://x"],
)  # fmt: skip
def test_other_kinds_of_address_are_refused_by_name(tmp_path, address):
    with pytest.raises(UserError, match=r"scheme .*, expected one of http, https, s3, gs"):
        check_address(address)
    with pytest.raises(UserError, match=r"scheme .*, expected one of http, https, s3, gs"):
        Remote(address, 3).read("manifest.json", MB)


def test_a_manifest_is_bounded_and_asked_for_once(server):
    with pytest.raises(UserError, match=r"/endless/manifest.json: more than 1048576 bytes"):
        Remote(f"{server.url}/endless", 3).read("manifest.json", MB)
    assert len(server.asked) == 1


@pytest.mark.parametrize("kind", ["endless", "claims", "bomb", "fewer"])
def test_a_shard_takes_no_more_room_than_its_manifest_says(server, tmp_path, kind):
    cache = ShardCache(f"{server.url}/{kind}", CachePolicy(tmp_path / "cache", 1 << 30, 1, 5.0))
    with pytest.raises((BadSampleError, WorkError), match=rf"/{kind}/x\.tar: (more than 2000000 bytes|no success)"):
        cache.fetch(Shard("x.tar", 4, 2_000_000, "0" * 64))
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size]
    assert left == []


def test_a_photo_behind_an_address_is_bounded_and_rejects_itself(server, tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.sources.tables.MAX_FILE_BYTES", MB)
    monkeypatch.setattr("data_prep.sources.tables._FETCH_TIMEOUT_S", 1.0)
    kinds = ["small", "endless", "bomb", "drip", "file", "loop"]
    addresses = [f"{server.url}/{kind}" for kind in kinds] + ["file:///etc/passwd", "reference://x"]
    rows = [Row(number, address.encode(), 0, 0, "a") for number, address in enumerate(addresses)]
    small, *others = TableReader(tmp_path).read(rows)
    assert small == Raw(b"text " * 100, "a")
    assert all(isinstance(each, Reject) for each in others)
    assert [each.reason for each in others] == [
        *("too large", "too large", "unreachable", "unreachable", "unreachable", "no such protocol", "no such protocol")
    ]
