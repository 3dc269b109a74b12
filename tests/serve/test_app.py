import asyncio
import json
import tempfile
import threading
import zlib

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dist_train.data.reject import Reject
from dist_train.embed.gallery import build_gallery
from dist_train.embed.job import embed_source
from dist_train.evaluate.models import load_model
from launch.cli import app
from launch.embed.crops import AlignedFace, Centre
from launch.embed.open import open_origin
from launch.embed.photos import Photos
from launch.serve.opening import Wanted, open_wanted
from tests.data.sets import picture
from tests.embed.models import write_model, write_photos
from tests.serve.services import PORTRAIT, SIZE, Client, decision, expected, files, model, photo


@pytest.fixture(scope="module")
def plain():
    """Aligned pictures, no gallery, no token."""
    with Client(request_bytes=1 << 20, photo_pixels=1 << 16) as client:
        yield client


def pixels(number):
    return picture(number, SIZE)


def png_of(width, height):
    """A PNG of a few bytes that claims a size."""

    def chunk(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_each_of_many_clients_gets_the_embedding_of_its_own_picture(plain):
    answers = plain.ask_all([("/embed", files(photo=photo(number))) for number in range(40)])
    assert [answer.status_code for answer in answers] == [200] * 40
    for number, answer in enumerate(answers):
        (face,) = answer.json()["faces"]
        assert np.allclose(face["embedding"], expected(pixels(number)), atol=1e-6)
        assert face["box"] == [0, 0, SIZE, SIZE]
        assert face["landmarks"] is face["score"] is None
    batches = plain.ask("/metrics", "GET").text
    assert float(batches.split("headcount_batch_photos_count ")[1].split()[0]) < 20
    assert 'headcount_requests_total{path="/embed",status="200"} 40.0' in batches


def test_two_photos_are_compared_and_the_verdict_is_by_the_threshold(plain):
    with Client(told=decision()) as client:
        same = client.ask("/verify", **files(first=photo(1), second=photo(1, ".jpg"))).json()
        other = client.ask("/verify", **files(first=photo(1), second=photo(2))).json()
    cosine = float(expected(pixels(1)) @ expected(pixels(2)))
    assert cosine < 0.9
    assert other["cosine"] == pytest.approx(cosine, abs=1e-5)
    assert (same["same"], other["same"]) == (True, False)
    assert same["threshold"]["fmr"] == 1e-3
    assert len(same["threshold"]["meaning"]) == 1
    assert plain.ask("/verify", **files(first=photo(1), second=photo(1))).json()["same"] is None


@pytest.mark.job
def test_a_face_gets_the_same_crop_as_by_headcount_embed_and_its_place_in_the_photo(tmp_path):
    (cut,) = AlignedFace(SIZE, longer_side_px=1024)([PORTRAIT])
    assert not isinstance(cut, Reject)
    with Client(aligned=True) as client:
        detected = client.ask("/detect", **files(photo=PORTRAIT)).json()
        embedded = client.ask("/embed", **files(photo=PORTRAIT)).json()
        nobody = client.ask("/detect", **files(photo=photo(1))).json()
        refused = client.ask("/verify", **files(first=PORTRAIT, second=photo(1)))
    assert detected["found"] == 1
    assert detected["main"] == 0
    assert np.allclose(detected["faces"][0]["box"], cut.found.boxes[0], atol=0.01)
    assert np.allclose(detected["faces"][0]["landmarks"], cut.found.landmarks[0], atol=0.01)
    assert np.allclose(embedded["faces"][0]["embedding"], expected(cut.pixels), atol=1e-6)
    assert nobody == {"found": 0, "main": None, "faces": []}
    assert refused.status_code == 422
    assert refused.json() == {"error": "field second: no face in the photo"}


def test_who_is_enrolled_is_found_until_forgotten_and_nothing_else_is_stored(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a temporary file")

    monkeypatch.setattr(tempfile, "TemporaryFile", never)
    with Client(tmp_path / "gallery", told=decision(), enroll=True) as client:
        for name, number, keep in (("Ann", 1, "true"), ("Bob", 2, "false")):
            told = client.ask("/enroll", **files(photo=photo(number)), data={"identity": name, "keep_picture": keep})
            assert told.status_code == 200
        stored = (tmp_path / "gallery" / "enrolled.log").read_bytes()
        found = client.ask("/search", **files(photo=photo(2)), data={"pictures": "true"}).json()
        first, second = found["faces"][0]["matches"]
        assert (first["identity"], first["match"], first["number"], first["picture"]) == ("Bob", True, 2, None)
        assert first["cosine"] == pytest.approx(1, abs=1e-5)
        assert (second["identity"], second["match"]) == ("Ann", False)
        assert second["picture"].startswith("data:image/jpeg;base64,")
        assert len(found["threshold"]["meaning"]) == 2
        one = client.ask("/search", **files(photo=photo(2)), data={"k": "1"}).json()
        assert [match["identity"] for match in one["faces"][0]["matches"]] == ["Bob"]
        client.ask("/embed", **files(photo=photo(3) + bytes(3 << 20)))  # beyond what a form keeps in memory by itself
        assert (tmp_path / "gallery" / "enrolled.log").read_bytes() == stored
        assert client.ask("/forget", data={"identity": "Ann"}, files={"x": b""}).status_code == 422
        assert client.ask("/forget", files={"identity": (None, "Ann")}).json() == {"forgotten": 1, "known": 1}
        assert client.ask("/forget", files={"identity": (None, "Ann")}).status_code == 404
        assert client.ask("/about", "GET").json()["known"] == 1
    with Client(tmp_path / "gallery") as client:  # whoever may not enrol can search
        found = client.ask("/search", **files(photo=photo(1))).json()
        assert [match["identity"] for match in found["faces"][0]["matches"]] == ["Bob"]
        assert client.ask("/enroll", **files(photo=photo(1))).status_code == 404


def gallery_of(home, network):
    """A gallery of seven photos."""
    photos = Photos(open_origin(write_photos(home / "photos", people=2, each=3, size=SIZE)), Centre(SIZE))
    embed_source(network, photos, home / "e.parquet", quiet=True)
    return build_gallery([home / "e.parquet"], home / "gallery", quiet=True)


def test_pictures_of_those_found_come_with_their_source_opened_once_and_no_later_than_their_time(tmp_path, monkeypatch):
    base, opened = gallery_of(tmp_path, model()), []
    monkeypatch.setattr("launch.embed.photos.open_origin", lambda *path: opened.append(path) or open_origin(*path))
    asked = files(photo=photo(1)) | {"data": {"k": "7", "pictures": "true"}}
    with Client(tmp_path / "gallery", base=base) as client:
        shown = client.ask("/search", **asked).json()["faces"][0]["matches"]
        assert [each["picture"][:23] for each in shown] == ["data:image/jpeg;base64,"] * 7
        assert len(opened) == 1
        monkeypatch.setattr("launch.serve.app._PICTURES_SHARE", 0)
        late = client.ask("/search", **asked).json()["faces"][0]["matches"]
    assert late == [each | {"picture": None} for each in shown]


def test_a_gallery_of_a_source_that_tells_nothing_of_alignment_is_served(tmp_path):
    path = write_model(tmp_path / "cells.onnx", SIZE)
    gallery_of(tmp_path, load_model(path, torch.device("cpu")))
    body = json.loads((tmp_path / "gallery" / "gallery.json").read_text())
    del body["sources"][0]["align"]
    (tmp_path / "gallery" / "gallery.json").write_text(json.dumps(body))
    service = open_wanted(Wanted(path, tmp_path / "gallery"), torch.device("cpu"))
    service.close()
    assert not service.aligned


FORM = {"content-type": "multipart/form-data"}
BOUNDED = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize(
    ("path", "request_", "status", "told"),
    [
        ("/embed", {}, 415, "expected a form"),
        ("/embed", {"json": {"photo": 1}}, 415, "expected a form"),
        ("/embed", {"data": {"photo": "text"}}, 415, "expected a form"),
        ("/embed", {"files": {"photo": (None, "text")}}, 422, "field photo is text"),
        ("/embed", {"files": {"first": b"x"}}, 422, "field 'first' is unknown; there are photo"),
        ("/embed", {"files": [("photo", b"x"), ("photo", b"y")]}, 422, "field photo is there twice"),
        ("/verify", {"files": {"first": b"x"}}, 422, "field second is missing"),
        ("/embed", {"content": b"--x", "headers": FORM}, 400, "Missing boundary"),
        ("/embed", {"content": b"", "headers": BOUNDED}, 422, "missing"),
        ("/embed", {"content": b"--x\r\n\xff", "headers": BOUNDED}, 400, ""),
        ("/embed", {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary="}}, 400, ""),
        ("/embed", {"files": {"photo": b""}}, 422, "photo: empty: 0 bytes"),
        ("/embed", {"files": {"photo": b"%PDF-1.4 hello"}}, 422, "photo: not a picture: 14 bytes"),
        ("/embed", {"files": {"photo": photo(1, ".jpg")[:-20]}}, 422, "photo: truncated"),
        ("/embed", {"files": {"photo": png_of(60_000, 60_000)}}, 413, "60000x60000 pixels, at most 65536"),
        ("/embed", {"files": {"photo": bytes(1 << 20)}}, 413, "more than 1,048,576 bytes"),
        ("/embed", {"files": {"photo": b"x"}, "headers": {"origin": "http://elsewhere"}}, 403, "another site"),
        ("/embed", {"files": {"photo": b"x"}, "headers": {"origin": "null"}}, 403, "another site"),
        ("/embed", {"files": {"photo": b"x"}, "headers": {"host": "elsewhere:80"}}, 403, "need a token"),
        ("/search", {"files": {"photo": b"x"}}, 404, "Not Found"),
        ("/nowhere", {}, 404, "Not Found"),
        ("/healthz", {}, 405, "Method Not Allowed"),
    ],
)  # fmt: skip
def test_a_request_that_is_wrong_is_told_what_is(plain, path, request_, status, told):
    answer = plain.ask(path, **request_)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert told in answer.json()["error"]


def test_numbers_flags_and_names_that_are_none_are_told(tmp_path):
    with Client(tmp_path / "gallery", enroll=True) as client:
        for path, fields, told in (
            ("/search", {"k": "0"}, "field k is '0', expected a whole number from 1 to 50"),
            ("/search", {"k": "51"}, "from 1 to 50"),
            ("/search", {"k": "²"}, "from 1 to 50"),
            ("/search", {"pictures": "yes"}, "expected true or false"),
            ("/enroll", {}, "field identity: expected 1 to 200 printable characters"),
            ("/enroll", {"identity": "a\x00b"}, "1 to 200 printable"),
            ("/enroll", {"identity": "a" * 5000}, "the form is broken"),
        ):
            answer = client.ask(path, **files(photo=photo(1)), data=fields)
            assert told in answer.json()["error"], path
            assert answer.status_code in (400, 422)
        for fields in ({}, {"identity": (None, "a"), "number": (None, "1")}, {"number": (None, "-1")}):
            assert client.ask("/forget", files=fields or {"other": b""}).status_code == 422
        assert client.ask("/about", "GET").json()["known"] == 0


def test_without_the_token_only_pages_without_data_are_answered():
    token = "0123456789abcdef"
    with Client(token=token) as client:
        for path in ("/", "/docs", "/openapi.json", "/healthz"):
            assert client.ask(path, "GET").status_code == 200
        for value in ("", token, "Bearer", "Bearer 0123456789abcdeg", "Bearer \xff", f"Bearer {token}"):
            refused = client.ask("/about", "GET", headers={b"authorization": value.encode("latin-1")})
            assert refused.status_code == (200 if value == f"Bearer {token}" else 401), value
        assert client.ask("/embed", **files(photo=photo(1))).status_code == 401
        told = {"authorization": f"Bearer {token}", "host": "faces.example"}
        assert client.ask("/embed", **files(photo=photo(1)), headers=told).status_code == 200
        assert client.ask("/metrics", "GET").status_code == 401


def send(app, messages, path="/embed", headers=()):
    """Status and body of a request whose body comes as `messages`: bytes, or seconds to wait."""
    sent = []

    async def run():
        left = list(messages)

        async def receive():
            while left and isinstance(left[0], float):
                await asyncio.sleep(left.pop(0))
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message):
            sent.append(message)

        fields = [(b"host", b"localhost"), *headers]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": fields}
        await app({**scope, "query_string": b"", "http_version": "1.1", "scheme": "http"}, receive, send)
        return left

    left = asyncio.run(run())
    return sent[0]["status"], json.loads(sent[1]["body"])["error"], dict(sent[0]["headers"]), left


def test_a_body_is_read_no_further_than_the_limit_and_no_longer_than_the_time():
    with Client(request_bytes=1000, request_s=0.2) as client:
        status, told, headers, left = send(client.app, [bytes(600), bytes(600), bytes(600)])
        assert (status, headers[b"connection"], left) == (413, b"close", [bytes(600)])
        status, told, _, left = send(client.app, [b"never asked for"], headers=[(b"content-length", b"1001")])
        assert (status, len(left)) == (413, 1)
        status, told, headers, _ = send(client.app, [b"a", 0.05, b"b", 0.05, b"c", 0.05, b"d", 60.0, b"e"])
        assert (status, told, headers[b"connection"]) == (408, "the body did not arrive within 0.1 s", b"close")
        assert client.ask("/embed", **files(photo=b"still here")).status_code == 422


def test_bodies_of_all_requests_together_are_bounded(monkeypatch):
    monkeypatch.setattr("launch.serve.limits.Limits.held_bytes", property(lambda self: 1500))

    with Client(request_bytes=1000, request_s=4.0) as client:

        async def both():
            async def receive():
                await asyncio.sleep(0.05)
                return {"type": "http.request", "body": bytes(900), "more_body": False}

            async def one():
                sent = []

                async def send(message):
                    sent.append(message)

                scope = {"type": "http", "method": "POST", "path": "/embed", "raw_path": b"/embed"}
                scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http"}
                await client.app({**scope, "headers": [(b"host", b"localhost")]}, receive, send)
                return sent[0]["status"]

            return sorted(await asyncio.gather(one(), one()))

        async def twice():
            first = await both()
            return first, client.app._held

        (first, held) = asyncio.run(twice())
        assert first in ([415, 415], [415, 429])
        assert held == 0


def test_both_photos_of_a_comparison_find_room_in_the_shortest_queue():
    with Client(waiting=2) as client:
        assert client.ask("/verify", **files(first=photo(1), second=photo(2))).status_code == 200
    assert CliRunner().invoke(app, ["serve", "model", "--max-waiting", "1"]).exit_code == 2


def test_a_full_queue_answers_429_at_once_and_a_late_answer_503(monkeypatch):
    entered, go = threading.Event(), threading.Event()
    with Client(waiting=1, batch=1, request_s=1) as client:
        process = client.service.batcher._process

        def held(tasks):
            entered.set()
            go.wait(10)
            return process(tasks)

        monkeypatch.setattr(client.service.batcher, "_process", held)
        answers = client.ask_all([("/embed", files(photo=photo(number))) for number in range(6)])
        go.set()
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses in ([429] * 4 + [503] * 2, [429] * 5 + [503])
        assert all(answer.headers["retry-after"] == "1" for answer in answers)
        assert client.ask("/embed", **files(photo=photo(1))).status_code == 200


def test_a_fault_of_ours_is_500_without_its_text_and_spoils_no_other_answer(monkeypatch, caplog):
    with Client() as client:
        finder = client.service.batcher._process._finder

        def faulty(photos):
            if b"secret" in photos:
                raise RuntimeError("secret")
            return finder(photos)

        monkeypatch.setattr(client.service.batcher._process, "_finder", faulty)
        answers = client.ask_all([("/embed", files(photo=each)) for each in (photo(1), b"secret", photo(2))])
        assert [answer.status_code for answer in answers] == [200, 500, 200]
        assert answers[1].json() == {"error": "a fault of the service; its log has more"}
    assert "/embed failed" in caplog.text


def test_the_page_and_the_description_load_nothing_and_name_every_path(plain):
    page = plain.ask("/", "GET")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert "http://" not in page.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page.text
    paths = plain.ask("/openapi.json", "GET").json()["paths"]
    assert set(paths) == {"/healthz", "/metrics", "/about", "/detect", "/embed", "/verify"}
    assert plain.ask("/docs", "GET").text.count("<section") == len(paths)
