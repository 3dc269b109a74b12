"""A directory of tars that others wrote becomes a set, and what cannot be used in it is counted and named."""

import json

import pytest
from typer.testing import CliRunner

from dist_train.data import verify as verify_module
from dist_train.data.cli import app
from dist_train.data.config import DataConfig
from dist_train.data.loader import build_loader
from dist_train.data.tars import walk_tar
from dist_train.errors import UserError, WorkError
from tests.data.tars import by_data, by_embed, drawn, labelled, tar_of


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.output, result.exception


@pytest.fixture(autouse=True)
def verified_here(monkeypatch):
    """A process for each look at a shard, of which test_cli.py has some, takes most of a second to start."""
    monkeypatch.setattr(verify_module, "in_processes", lambda function, items, workers: map(function, items))


def sized(sides):
    return [
        member
        for number, side in enumerate(sides)
        for member in ((f"{number:03d}.png", drawn(number, side, "PNG")), (f"{number:03d}.cls", b"%d" % number))
    ]


class TestSize:
    def test_the_first_picture_does_not_decide_and_a_tiny_one_is_bad(self, tmp_path, caplog):
        tar_of(tmp_path / "a.tar", sized([1] + [64] * 9))
        assert by_data(tmp_path)[0].image_size == 64
        assert "1 of 10 samples cannot be used, e.g. pictures of 1x1 pixels in a set of 64x64" in caplog.text
        told, _ = run("inspect", tmp_path)
        assert "unusable   1 samples" in told
        told, error = run("verify", tmp_path, "--workers", 1)
        assert isinstance(error, WorkError)
        assert "a.tar, sample 000: 1x1 pixels, less than 1/4 of its set's 64x64" in told

    def test_most_pictures_decide_and_the_others_are_scaled_which_is_said(self, tmp_path, caplog):
        tar_of(tmp_path / "a.tar", sized([40, 64, 64, 64, 54]))
        assert by_data(tmp_path)[0].image_size == 64
        assert "2 of 5 pictures are not of 64x64 pixels and are scaled to it (1 of 40x40, 1 of 54x54)" in caplog.text
        assert "scaled     2 pictures of another size, e.g. 000 in a.tar: 40x40" in run("inspect", tmp_path)[0]

    def test_pictures_that_are_not_square_are_counted_and_named(self, tmp_path, caplog):
        from tests.data.test_pictures import chunk  # a header is enough

        wide = drawn(0, 32, "PNG")
        wide = wide[:8] + chunk(b"IHDR", (40).to_bytes(4, "big") + wide[20:29]) + wide[33:]
        tar_of(tmp_path / "a.tar", [*labelled("abc"), ("w.png", wide), ("w.cls", b"3")])
        assert by_data(tmp_path)[0].num_classes == 3
        assert "1 of 4 samples cannot be used, e.g. w in a.tar: 40x32 pixels, expected a square" in caplog.text


class TestLabels:
    @pytest.mark.parametrize("label", [b"999999999999", b"1000000000", b"-3", b"1" * 30, b"99999999"])
    @pytest.mark.parametrize("kind", ["cls", "json"])
    def test_one_out_of_all_range_costs_its_sample_and_no_memory(self, tmp_path, caplog, label, kind):
        odd = label if kind == "cls" else b'{"label": %s}' % label
        tar_of(tmp_path / "a.tar", [*labelled("abc"), ("odd.jpg", drawn(9)), (f"odd.{kind}", odd)])
        assert by_data(tmp_path)[0].num_classes == 3
        assert "1 of 4 samples cannot be used, e.g. odd in a.tar: " in caplog.text
        assert "unusable   1 samples" in run("inspect", tmp_path)[0]
        told, error = run("verify", tmp_path, "--workers", 1)
        assert isinstance(error, WorkError)
        assert "a.tar, sample odd: " in told
        assert by_embed(tmp_path)[1] == {}

    def test_a_few_samples_of_a_large_set_keep_their_labels(self, tmp_path):
        tar_of(tmp_path / "a.tar", [*labelled("ab"), ("c.jpg", drawn(9)), ("c.cls", b"9000000")])
        assert by_data(tmp_path)[0].num_classes == 9_000_001

    def test_json_nested_without_end_costs_its_sample(self, tmp_path):
        deep = b'{"label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        tar_of(tmp_path / "a.tar", [*labelled("ab"), ("odd.jpg", drawn(9)), ("odd.json", deep)])
        assert by_data(tmp_path)[1] == [0, 1]
        assert len(by_embed(tmp_path)[0]) == 3

    def test_a_score_that_is_none_is_no_score(self, tmp_path):
        for number, score in enumerate([10**400, float("nan"), "x", True]):
            text = json.dumps({"label": 1, "score": score}).encode()
            tar_of(tmp_path / f"{number}.tar", [("a.jpg", drawn(number)), ("a.json", text)])
        assert len(by_embed(tmp_path)[0]) == 4


def test_nothing_that_can_be_used_is_an_error_with_an_example(tmp_path):
    tar_of(tmp_path / "a.tar", [("a.jpg", b"no picture"), ("a.cls", b"0")])
    with pytest.raises(UserError, match=r"no sample with a square picture .* e\.g\. a in a\.tar: cannot be decoded"):
        by_data(tmp_path)


def test_a_folder_of_sets_is_an_error_that_names_them(tmp_path):
    tar_of(tmp_path / "part" / "a.tar", labelled(["x", "y"]))
    by_data(tmp_path / "part")
    with pytest.raises(UserError, match=rf"there are sets below it, give one of them: {tmp_path}/part$"):
        by_data(tmp_path)


def test_what_verify_calls_right_training_takes(tmp_path):
    tar_of(tmp_path / "a.tar", labelled(f"k{n} é" for n in range(5)))
    assert by_data(tmp_path)[1] == list(range(5))
    told, error = run("verify", tmp_path, "--workers", 1)
    assert error is None
    assert "5 images in 1 shards, all as the manifest says" in told


def test_verify_and_inspect_name_what_no_sample_is_made_of(tmp_path):
    tar = tar_of(tmp_path / "a.tar", labelled("abc"))
    (label,) = (found for found in walk_tar(tar) if found.name == "a.cls")
    at = label.offset + 512
    tar.write_bytes(tar.read_bytes()[:at] + b"\xaa" * 512 + tar.read_bytes()[at:])
    assert by_data(tmp_path)[1] == [0, 1, 2]
    what = f"bytes {at} to {at + 512}"
    told, _ = run("inspect", tmp_path)
    assert f"left out   1 things in the tars, e.g. {what} in a.tar: damaged" in told
    told, error = run("verify", tmp_path, "--workers", 1)
    assert isinstance(error, WorkError)
    assert f"a.tar, sample {what}: damaged" in told


def test_tars_named_in_capitals_are_a_set_to_every_command(tmp_path):
    tar_of(tmp_path / "A.TAR", labelled(f"k{n}" for n in range(5)))
    assert by_data(tmp_path)[1] == list(range(5))
    assert by_data(tmp_path)[1] == list(range(5)), "with the manifest that is there now"
    told, error = run("verify", tmp_path, "--workers", 1)
    assert error is None
    assert "5 images in 1 shards, all as the manifest says" in told
    with build_loader(DataConfig(path=str(tmp_path), workers=0, backend="opencv"), 5, 0, 1, seed=0) as loader:
        assert sorted(next(loader).labels.tolist()) == list(range(5))


def test_two_tars_that_would_share_an_index_are_refused(tmp_path):
    for name in ("a.tar", "a.TAR"):
        tar_of(tmp_path / name, labelled("xy"))
    with pytest.raises(UserError, match=r"a\.TAR and a\.tar would share the index a\.idx; rename one"):
        by_data(tmp_path)
    assert not (tmp_path / "manifest.json").exists()
