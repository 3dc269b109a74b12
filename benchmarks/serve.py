"""What a service costs beside the pipeline alone, what bad requests do to it, and what kills lose.

    python benchmarks/serve.py                    # all three cases
    python benchmarks/serve.py --case load --clients 32 --photos 2000
    python benchmarks/serve.py --case bad --requests 10000
    python benchmarks/serve.py --case kills --kills 1000

Cases: `load`, photos a second of `/embed` with many clients on this machine, beside the same finder and network called
in batches in one process, and the latencies; `bad`, requests that are cut off, huge, slow, no pictures, or have wrong
fields: answers by status, and the server's memory; `kills`, enrolments in a process that is killed at random moments.
The photos are of LFW where ../shared/real has it, else made of the portrait that matplotlib ships; the network is the
one there, else one with random weights.
"""

import argparse
import http.client
import io
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import psutil
import torch
from line import print_line
from PIL import Image

from data_prep.detectors.open import open_detector
from dist_train.backbones.build import build_backbone
from dist_train.backbones.config import BackboneConfig
from dist_train.evaluate.models import load_model
from dist_train.export.onnx import export_onnx
from dist_train.runtime.processes import ONE_THREAD
from dist_train.runtime.ranks import join_ranks
from launch.serve.finder import AlignedFaces
from launch.serve.limits import Limits
from launch.serve.pipeline import Pipeline, Task

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "real"
LFW, MODEL = REAL / "lfw-deepfunneled.tar", REAL / "mobilefacenet_y1.onnx"
BOUNDARY = "xxxxxxxxxxxxxxxx"


def photos(count: int) -> list[bytes]:
    """Encoded photos of 250 x 250 pixels."""
    if LFW.exists():
        with tarfile.open(LFW) as tar:
            files = [member for member in tar if member.isfile() and member.name.endswith(".jpg")]
            chosen = files[:: max(1, len(files) // count)][:count]
            return [file.read() for member in chosen if (file := tar.extractfile(member)) is not None]
    portrait = cv2.imread(str(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"))
    small = cv2.resize(portrait[:512], (250, 250), interpolation=cv2.INTER_AREA)
    shifted = (np.roll(small, (number % 16, number // 16 % 16), (0, 1)) for number in range(count))
    return [cv2.imencode(".jpg", each)[1].tobytes() for each in shifted]


def write_model(folder: Path) -> Path:
    """A network with random weights, as ONNX."""
    network = build_backbone(BackboneConfig(name="mobilefacenet", embedding_dim=128), 112).eval()
    path = folder / "random.onnx"
    export_onnx(network, 112, path)
    return path


@contextmanager
def served(model: Path, *options: str) -> Iterator[tuple[int, psutil.Process]]:
    """A server as a user starts it: its port and process. It ends by SIGTERM, which must give status 0."""
    environment = {name: value for name, value in os.environ.items() if name not in ONE_THREAD}
    command = [sys.executable, "-m", "launch", "serve", str(model), "--port", "0", *options]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.search(r":(\d+)$", line.strip())
            if not found:
                errors.seek(0)
                raise RuntimeError(f"{' '.join(command)}: {line}{errors.read()}")
            yield int(found[1]), psutil.Process(process.pid)
        finally:
            process.terminate()
            if process.wait(120):
                raise RuntimeError(f"the server ended with status {process.returncode}")


def form(**fields: bytes) -> bytes:
    """A form with files."""
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"; filename="a"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in fields.items()
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


HEADERS = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}


def load(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Photos a second of a service with many clients, beside the pipeline alone."""
    pictures = photos(options.photos)
    alone = alone_rate(model, pictures)
    with served(model, "--align") as (port, process):
        ask(port, pictures[: 2 * options.clients], options.clients)  # warm
        rate, seconds = ask(port, pictures, options.clients)
        memory = process.memory_info().rss
    cuts = statistics.quantiles(seconds, n=100)
    return {
        "ours": round(rate, 1),
        "baseline": round(alone, 1),
        "ratio": round(rate / alone, 3),
        "unit": "photos/s",
        "median_ms": round(1000 * cuts[49], 1),
        "p99_ms": round(1000 * cuts[98], 1),
        "p99_over_median": round(cuts[98] / cuts[49], 2),
        "peak_rss_mb": round(memory / 2**20),
        "clients": options.clients,
        "photos": len(pictures),
        "model": model.name,
    }


def alone_rate(model: Path, pictures: Sequence[bytes]) -> float:
    """Photos a second of the finder and the network of a service, in one process, in batches of the service's size."""
    device, limits = join_ranks("auto", None).device, Limits()
    network = load_model(model, device)
    finder = AlignedFaces(
        open_detector(device=device.type, min_face_px=20),
        network.image_size,
        20,
        1024,
        limits.photo_pixels,
        limits.faces,
    )
    pipeline = Pipeline(finder, network, True, 64, None)
    pipeline([Task(photo) for photo in pictures[: limits.batch]])
    begin = time.perf_counter()
    for start in range(0, len(pictures), limits.batch):
        pipeline([Task(photo) for photo in pictures[start : start + limits.batch]])
    return len(pictures) / (time.perf_counter() - begin)


def ask(port: int, pictures: Sequence[bytes], clients: int) -> tuple[float, list[float]]:
    """Photos a second that clients are answered, each asking again when it has its answer, and seconds of each."""
    left, lock, seconds = list(pictures), threading.Lock(), list[float]()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                if not left:
                    return
                body = form(photo=left.pop())
            begin = time.perf_counter()
            connection.request("POST", "/embed", body, HEADERS)
            answer = connection.getresponse()
            answer.read()
            seconds.append(time.perf_counter() - begin)
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}")

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for each in [pool.submit(client) for _ in range(clients)]:
            each.result()
    return len(pictures) / (time.perf_counter() - begin), seconds


def bad(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Bad requests: statuses, and the server's memory after a tenth of them and after all."""
    good = photos(20)
    statuses: Counter[str] = Counter()
    with served(model, "--align", "--timeout", "10") as (port, process):
        memory = []
        for share in (0.1, 0.9):
            with ThreadPoolExecutor(32) as pool:
                seeds = range(len(memory) * options.requests, int((len(memory) + share) * options.requests))
                statuses.update(pool.map(lambda seed: spoilt(port, good, random.Random(seed)), seeds))
            memory.append(process.memory_info().rss)
        _, seconds = ask(port, good, 2)
    grown = (memory[1] - memory[0]) / 2**20
    return {
        "ours": sum(count for status, count in statuses.items() if status.startswith("500")),
        "baseline": 0,
        "unit": "answers 500",
        "requests": sum(statuses.values()),
        "statuses": dict(sorted(statuses.items())),
        "rss_mb": [round(each / 2**20) for each in memory],
        "grown_mb": round(grown, 1),
        "answered_after_s": round(statistics.median(seconds), 3),
    }


def spoilt(port: int, good: Sequence[bytes], chance: random.Random) -> str:
    """The status of one bad request; `none` where the client left, or the connection was closed."""
    kind = chance.choice(
        ("cut", "huge", "header", "nonsense", "no picture", "claims", "truncated", "fields", "type", "path")
    )
    if chance.random() < 0.02:
        kind = "slow"
    photo = chance.choice(good)
    body = form(photo=photo)
    head = f"POST {chance.choice(('/embed', '/detect', '/verify'))} HTTP/1.1\r\nhost: localhost\r\n"
    typed = head + f"content-type: {HEADERS['content-type']}\r\n"
    noise = chance.randbytes(chance.randrange(1, 3000))
    bodies = {
        "no picture": form(photo=noise),
        "truncated": form(photo=photo[: chance.randrange(20, len(photo))] + b"\0" * chance.randrange(9)),
        "claims": form(photo=claims(chance)),
        "fields": form(**{chance.choice(("x", "photo[]", "first", "__proto__")): photo}),
        "type": body,
        "nonsense": b"--" + BOUNDARY.encode() + noise,
        "path": body,
    }
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        if kind == "cut":
            connection.sendall((typed + f"content-length: {len(body)}\r\n\r\n").encode() + body[: len(body) // 2])
            return "none"
        if kind == "slow":
            connection.sendall((typed + f"content-length: {len(body)}\r\n\r\n").encode())
            for number in range(80):
                connection.sendall(body[number : number + 1])
                time.sleep(0.1)
        elif kind == "huge":
            length = chance.choice((11 << 20, 1 << 40, 10**30))
            connection.sendall((typed + f"content-length: {length}\r\n\r\n").encode() + bytes(1 << 16))
        elif kind == "header":
            connection.sendall(
                chance.choice((noise, b"GET / HTTP/9\r\n\r\n", b"GET /\r\nx" * 9000, head.encode() + noise))
            )
            connection.shutdown(socket.SHUT_WR)
        else:
            start = f"POST /{chance.random()} HTTP/1.1\r\nhost: localhost\r\n" if kind == "path" else typed
            if kind == "type":
                wrong = (
                    "text/plain",
                    "multipart/form-data",
                    "multipart/form-data; boundary=",
                    "é",
                    "multipart/mixed; x",
                )
                start = head + f"content-type: {chance.choice(wrong)}\r\n"
            sent = bodies[kind]
            connection.sendall(start.encode() + f"content-length: {len(sent)}\r\n\r\n".encode() + sent)
        answer = connection.recv(1 << 16)
        return answer[9:12].decode(errors="replace") if answer.startswith(b"HTTP/1.1 ") else "none"
    return "none"


def claims(chance: random.Random) -> bytes:
    """A PNG, BMP or GIF of a few bytes that claims many pixels."""
    side = chance.choice((6000, 30_000, 65_535))
    buffer = io.BytesIO()
    kind = chance.choice(("PNG", "BMP", "GIF"))
    Image.new("P", (1, 1)).save(buffer, kind)
    data = bytearray(buffer.getvalue())
    if kind == "GIF":
        data[6:10] = min(side, 65_535).to_bytes(2, "little") * 2
    elif kind == "BMP":
        data[18:26] = side.to_bytes(4, "little") * 2
    else:
        data[16:24] = side.to_bytes(4, "big") * 2
    return bytes(data)


def kills(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Acknowledged enrolments that kills lost."""
    command = [sys.executable, "-m", "tests.serve.killed_enrolment", "--kills", str(options.kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {"ours": found["lost"], "baseline": 0, "unit": "acknowledged enrolments lost", **found}


CASES: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {"load": load, "bad": bad, "kills": kills}


def main() -> None:
    """Run one case or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=sorted(CASES), help="only this case")
    parser.add_argument("--model", type=Path, help="an .onnx file or a run")
    parser.add_argument("--clients", type=int, default=32, help="that ask at a time")
    parser.add_argument("--photos", type=int, default=2000, help="of the load")
    parser.add_argument("--requests", type=int, default=10_000, help="bad ones")
    parser.add_argument("--kills", type=int, default=1000, help="of an enrolling process")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as name:
        model = options.model or (MODEL if MODEL.exists() else write_model(Path(name)))
        for case in [options.case] if options.case else CASES:
            print_line({"benchmark": "serve", "case": case} | CASES[case](options, model))


if __name__ == "__main__":
    main()
