"""The page of a service in a real browser: drops, results, errors, wide and narrow, light and dark."""

import base64
import json
from itertools import product
from pathlib import Path

import pytest

from dist_train.runtime.digest import sha256_of
from tests.browser.chromium import SCHEMES, WIDTHS, Browser, program
from tests.browser.test_pages import FAULTS
from tests.data.sets import encode, picture
from tests.embed.models import SIZE, write_model, write_photos
from tests.evaluate.figures import figures, point, write_figures
from tests.launch.recipes import headcount_here
from tests.serve.server import Server

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium (make browser)")

TOKEN = "0123456789abcdef"
DROP = """(async () => {
  const bytes = Uint8Array.from(atob(%s), (letter) => letter.charCodeAt(0)), data = new DataTransfer()
  data.items.add(new File([bytes], %s, { type: "image/png" }))
  const event = new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
  document.getElementById(%s).dispatchEvent(event)
})()"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("served")
    model = write_model(home / "cells.onnx", SIZE)
    write_photos(home / "photos")
    for arguments in (
        ("embed", model, home / "photos", home / "rows.parquet"),
        ("search", "build", home / "rows.parquet", home / "gallery"),
    ):
        assert headcount_here(*arguments).returncode == 0
    measured = write_figures(home / "figures.json", figures(sha256_of(model), [point(1e-3, 0.95)]))
    (home / "token").write_text(TOKEN)
    options = ("--gallery", home / "gallery", "--calibration", measured, "--token-file", home / "token")
    with Server(model, *options, "--max-bytes", "20000") as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def drop(browser, zone, data, name="some.png"):
    browser.run(DROP % (json.dumps(base64.b64encode(data).decode()), json.dumps(name), json.dumps(zone)))


def waited(browser, condition):
    """The value of an expression, once it is true."""
    script = f"""(async () => {{ for (let look = 0; look < 600; look++) {{
      const found = {condition}
      if (found) return found
      await new Promise((next) => setTimeout(next, 25)) }} return null }})()"""
    found = browser.run(script)
    assert found, f"{condition}: {browser.run('document.body.innerText')}"
    return found


def test_photos_that_are_dropped_get_faces_matches_and_verdicts_and_errors_are_told(server, browser):
    for (width, pixels), scheme in product(WIDTHS.items(), SCHEMES):
        browser.open(server.url, pixels, scheme)
        waited(browser, "!document.getElementById('token').hidden")
        assert browser.run("document.getElementById('about').textContent") == "The service wants a token."
        browser.run(
            f"document.getElementById('secret').value = '{TOKEN}'; document.querySelector('#token button').click()"
        )
        about = waited(browser, "document.getElementById('about').textContent.includes('FMR') && about && "
                                "document.getElementById('about').textContent")  # fmt: skip
        assert about.startswith("13 faces are known. From a cosine of 0.950 on two faces count as one person; 0.1 % of")
        drop(browser, "drop", encode(picture(101, SIZE), ".png"), "<b>who.png")
        first = waited(browser, "document.querySelector('.row figure:nth-child(2) figcaption')?.innerText")
        assert first.split("\n") == ["person 1", "1.000 · match"]
        assert browser.run("document.querySelectorAll('.row figure img').length") == 5  # pictures of the gallery
        assert browser.run("document.querySelectorAll('.photo rect.main').length") == 1
        assert browser.run("document.getElementById('told').textContent") == "1 face in <b>who.png."
        assert "a stranger meets" in browser.run("document.getElementById('found').innerText")
        drop(browser, "first", encode(picture(1, SIZE), ".png"))
        drop(browser, "second", encode(picture(2, SIZE), ".png"))
        verdict = waited(browser, "document.querySelector('.verdict')?.parentElement.innerText")
        assert verdict.startswith("Not the same person\ncosine ")
        assert verdict.endswith(", threshold 0.9500")
        faults = browser.run(FAULTS)
        said = [each for each in browser.complaints if "401" not in each]  # of the first question, without the token
        assert [*faults, *said] == [], f"{width}, {scheme}"
        drop(browser, "drop", b"no picture")
        told = waited(browser, "document.querySelector('.told.error')?.textContent")
        assert told.startswith("photo: not a picture: 10 bytes")
        assert browser.run("document.querySelectorAll('.row').length") == 0
        drop(browser, "drop", bytes(30_000), "large.png")
        assert "large.png is too large" in waited(browser, "document.getElementById('told').textContent")
        assert browser.run(FAULTS) == []


def test_the_page_runs_no_script_but_its_own_and_the_description_is_whole(server, browser, tmp_path: Path):
    browser.open(server.url, 1280, "light")
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=\"https://example.invalid/x.png\" alt=\"\">')")
    browser.run(
        "document.head.append(Object.assign(document.createElement('script'), {textContent: 'document.title = 1'}))"
    )
    assert browser.run("document.title") == "headcount"
    assert sum("Content Security Policy" in complaint for complaint in browser.complaints) == 2
    for (_, pixels), scheme in product(WIDTHS.items(), SCHEMES):
        browser.open(f"{server.url}/docs", pixels, scheme)
        assert [*browser.run(FAULTS), *browser.complaints] == []
