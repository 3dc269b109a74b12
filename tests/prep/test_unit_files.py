"""Damaged files of a job: one line that names the file and the way out, which then works."""

import json

import pytest

from dist_train.errors import WorkError
from tests.prep.jobs import content, options, photos, run


@pytest.fixture
def unsealed(tmp_path):
    """A job that lacks its last step, and what it makes."""
    run(tmp_path / "out", options(photos(tmp_path / "photos")))
    made = content(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    return tmp_path, made


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("units/000000.json", b"{"),
        ("units/000000.json", b"\xff"),
        ("units/000000.json", b"[" * 100_000),
        ("units/000000.json", b'{"given": "x"}'),
        ("units/000000.json", b'{"given": 1' + b"0" * 5000 + b"}"),
        ("units/000000.parquet", b""),
        ("units/000000.parquet", b"PAR1 no table PAR1"),
        ("shards/000001.json", b'{"name": 1}'),
    ],
)
def test_a_damaged_file_of_a_unit_is_named_and_made_anew_as_the_message_says(unsealed, name, damage):
    base, made = unsealed
    path = base / "out" / ".prep" / name
    path.write_bytes(damage)
    mark = base / "out" / ".prep" / "units" / f"{path.stem}.json"
    with pytest.raises(WorkError, match=f"{path}: damaged: .*; remove {mark} and .*run the same command") as caught:
        run(base / "out", options(base / "photos"))
    assert "\n" not in str(caught.value)
    mark.unlink()
    if "shards" in name:
        path.unlink()
    run(base / "out", options(base / "photos"))
    assert content(base / "out") == made


def test_a_mark_with_reasons_that_are_no_counts_is_damaged(unsealed):
    base, _ = unsealed
    path = base / "out" / ".prep" / "units" / "000000.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "reasons": {"x": []}}))
    with pytest.raises(WorkError, match="reasons without counts"):
        run(base / "out", options(base / "photos"))
