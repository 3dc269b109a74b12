"""What requests take while they are sent, while they wait, and while their forms are read."""

import asyncio
import threading
import time
import tracemalloc

from tests.serve.services import Client

PIECES, PIECE_BYTES = 32, 1 << 16


async def upload(app, field="photo"):
    """Status of a form with a file of zeros, sent in pieces that nobody else holds."""
    head = f'--x\r\ncontent-disposition: form-data; name="{field}"; filename="a"\r\n\r\n'.encode()
    left, sent = [head, *[None] * PIECES, b"\r\n--x--\r\n"], []

    async def receive():
        body = left.pop(0) or bytes(PIECE_BYTES)
        return {"type": "http.request", "body": body, "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    fields = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/detect", "raw_path": b"/detect", "headers": fields}
    await app({**scope, "query_string": b"", "http_version": "1.1", "scheme": "http"}, receive, send)
    return sent[0]["status"]


def test_what_waits_is_in_memory_once_and_what_is_answered_no_more():
    count, size = 6, PIECES * PIECE_BYTES
    go = threading.Event()
    with Client(batch=1, request_s=60.0) as client:
        process = client.service.batcher._process
        client.service.batcher._process = lambda tasks: go.wait(60) and process(tasks)

        async def measured():
            asked = [asyncio.create_task(upload(client.app)) for _ in range(count)]
            while client.service.batcher.waiting < count - 1:  # the first is in work
                await asyncio.sleep(0.01)
            waiting, held = tracemalloc.get_traced_memory()[0], client.app._held
            go.set()
            await asyncio.gather(*asked)
            return waiting, held

        go.set()
        asyncio.run(upload(client.app))  # what is made once
        go.clear()
        tracemalloc.start()
        try:
            waiting, held = asyncio.run(measured())
            for _ in range(500):  # the thread may have something left to do after the answers
                if (answered := tracemalloc.get_traced_memory()[0]) < 0.5 * size:
                    break
                time.sleep(0.01)
        finally:
            tracemalloc.stop()
    assert count * size < held < 1.01 * count * size
    assert waiting < 1.2 * held
    assert answered < 0.5 * size


def test_others_go_on_while_a_large_form_is_read():
    turns = 0

    async def read():
        nonlocal turns
        asked = asyncio.create_task(upload(client.app, "other"))  # refused once it is read
        while not asked.done():
            await asyncio.sleep(0)
            turns += 1
        return await asked

    with Client() as client:
        assert asyncio.run(read()) == 422
    assert turns > PIECES
