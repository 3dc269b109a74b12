"""The short form of `make kill-loop`."""

from tests.sets import write_set
from tests.train.kill_loop import differing, train, train_unbroken
from tests.train.killed_rank import Kill


def test_a_run_that_is_killed_in_a_save_at_the_rename_and_with_its_launcher_ends_with_the_same_weights(tmp_path):
    write_set(tmp_path / "set")
    kills = [Kill("save", 3, 1, 0.005), Kill("after_rename", 9, 0, 0.0), Kill("launcher", 17, 1, 0.02)]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = train_unbroken(tmp_path / "whole", tmp_path / "set")
    assert len(whole) > 100
    assert differing(whole, train(tmp_path / "killed", tmp_path / "set", kills)) == []
