import signal
import socket
import threading
import time

import pytest

from dist_train.errors import UserError
from launch.serve.cli import check_place, read_token
from tests.embed.models import SIZE, write_model
from tests.launch.recipes import headcount_here
from tests.serve.killed_enrolment import kill_loop
from tests.serve.server import Server, everything
from tests.serve.services import files, photo

pytestmark = pytest.mark.job


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "cells.onnx", SIZE)


def test_a_server_bounds_what_clients_hold_and_a_signal_ends_it_when_all_have_their_answers(model, tmp_path):
    with Server(
        model, "--no-align", "--gallery", tmp_path / "new", "--allow-enroll", "--timeout", "2", "--max-connections", "9"
    ) as server:
        told = server.ask("/enroll", **files(photo=photo(1)), data={"identity": "Ann"})
        assert told.json()["known"] == 1
        slow_head = server.connect(b"GET /healthz HT")
        slow_body = server.connect(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\nabc")
        announced = server.connect(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999\r\n\r\n")
        nonsense = server.connect(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n")
        endless = server.connect(b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000)
        assert everything(announced).startswith(b"HTTP/1.1 413 ")
        assert everything(nonsense).startswith(b"HTTP/1.1 400 ")
        assert everything(endless)[:13] in (b"HTTP/1.1 400 ", b"")  # cut off while it sends
        assert everything(slow_head).startswith(b"HTTP/1.1 408 ")
        assert everything(slow_body).startswith(b"HTTP/1.1 408 ")
        many = [server.connect() for _ in range(12)]
        refused = [everything(each) for each in many[9:]]
        assert all(each.startswith(b"HTTP/1.1 503 ") for each in refused)
        for each in many:
            each.close()
        answers = []
        body = (
            b'--x\r\ncontent-disposition: form-data; name="photo"; filename="a"\r\n\r\n' + photo(1) + b"\r\n--x--\r\n"
        )
        head = b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=x\r\n"
        begun = [server.connect(head + b"content-length: %d\r\n\r\n" % len(body) + body[:100]) for _ in range(5)]
        time.sleep(0.2)
        server.signal()
        time.sleep(0.2)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)
        for each in begun:
            each.sendall(body[100:])
        answers = [everything(each) for each in begun]
        assert all(answer.startswith(b"HTTP/1.1 200 ") and b"Ann" in answer for answer in answers)
        assert server.ended() == 0, server.said()


def test_a_second_signal_ends_a_server_at_once(model):
    with Server(model, "--no-align", "--timeout", "600") as server:
        held = server.connect(b"POST /embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\nabc")
        time.sleep(0.2)
        server.signal(signal.SIGINT)
        assert server.ended(0.5) is None
        server.signal()
        assert server.ended() == 130
        held.close()


def test_whoever_was_told_that_somebody_is_enrolled_finds_them_after_a_kill(model, tmp_path):
    names = []
    with Server(model, "--no-align", "--gallery", tmp_path / "new", "--allow-enroll") as server:

        def enrol(first):
            for number in range(first, 1000):
                told = server.ask("/enroll", **files(photo=photo(number)), data={"identity": f"person {number}"})
                names.append(told.json()["identity"])

        for first in (0, 300, 600):
            threading.Thread(target=lambda first=first: _quiet(enrol, first), daemon=True).start()
        while len(names) < 10:
            time.sleep(0.01)
        server.signal(signal.SIGKILL)
        server.ended()
        told = {*names}
    from dist_train.embed.enrolled import Enrolled
    from dist_train.runtime.digest import sha256_of

    made_by = {"model": {"name": "cells", "sha256": sha256_of(model), "told": {}}, "embedding_dim": 48}
    log = Enrolled(tmp_path / "new", made_by | {"flip": True, "aligner": None})
    assert told <= {entry.identity for entry in log.snapshot()[1]}
    log.close()


def _quiet(enrol, first):
    import contextlib

    with contextlib.suppress(Exception):
        enrol(first)


def test_random_kills_lose_no_acknowledged_enrolment(tmp_path):
    acknowledged, lost = kill_loop(tmp_path / "gallery", 6)
    assert acknowledged >= 6
    assert lost == 0


def test_a_service_that_everybody_could_use_is_refused(model, tmp_path):
    for host in ("0.0.0.0", "::", "192.168.0.1", "faces.example"):
        with pytest.raises(UserError, match=f"--host {host}: other machines could use the service; give --token-file"):
            check_place(host, has_token=False, has_gallery=True, allow_enroll=False)
        check_place(host, has_token=True, has_gallery=True, allow_enroll=False)
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_place(host, has_token=False, has_gallery=False, allow_enroll=False)
    for arguments, told in (
        (["--host", "0.0.0.0"], "--host 0.0.0.0: other machines"),
        (["--allow-enroll"], "--allow-enroll: where to? Give --gallery"),
        (["--no-align", "--gallery", tmp_path], "no gallery there"),
        (["--no-align", "--fmr", "1e-4"], "--fmr 0.0001: model cells states no thresholds"),
        (["--token-file", tmp_path / "none"], "No such file"),
        (["--no-align", "--host", "203.0.113.1", "--token-file", tmp_path / "token"], "cannot listen there"),
    ):
        (tmp_path / "token").write_text("0123456789abcdef\n")
        done = headcount_here("serve", model, *arguments)
        assert done.returncode == 2, done.stderr
        assert told in done.stderr


def test_a_token_is_long_and_plain(tmp_path, monkeypatch):
    monkeypatch.delenv("HEADCOUNT_TOKEN", raising=False)
    assert read_token(None) is None
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert read_token(path) == "0123456789abcdef"
    for wrong in (b"", b"short", b"0123456789 abcdef", b"0123456789abcde\xc3\xa9", b"a" * 1025, b"a" * 9000):
        path.write_bytes(wrong)
        with pytest.raises(UserError, match=r"--token-file .*token: "):
            read_token(path)
    monkeypatch.setenv("HEADCOUNT_TOKEN", "too short")
    with pytest.raises(UserError, match="variable HEADCOUNT_TOKEN: expected 16 to 1024"):
        read_token(None)
