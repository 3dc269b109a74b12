"""The names of a head's classes, kept in the run's directory when the run begins."""

import logging

import pyarrow as pa
import pyarrow.parquet as pq

from dist_train.config import load_config
from dist_train.train.run_dir import claim_run_dir
from tests.data.sets import make_set
from tests.launch.recipes import write_recipe


def write_names(directory, names, **more):
    pq.write_table(pa.table({"label": range(len(names)), "name": names} | more), directory / "identities.parquet")


def test_names_are_kept_once_and_outlive_changes_of_the_set(tmp_path):
    make_set(tmp_path / "set", [6], num_classes=3)
    config = load_config(write_recipe(tmp_path / "recipe.yaml", tmp_path / "set", tmp_path / "run"))
    (tmp_path / "run").mkdir()
    write_names(tmp_path / "run", ["of a start that was cut off"])
    claim_run_dir(config)
    assert {path.name for path in config.run_dir.iterdir()} == {"config.yaml"}, "a set without names"
    (tmp_path / "run" / "config.yaml").unlink()
    write_names(tmp_path / "set", ["a", "b", "b"], count=[2, 2, 2])
    claim_run_dir(config)
    write_names(tmp_path / "set", ["x", "y", "z"])
    claim_run_dir(config)  # a resume
    kept = pq.read_table(tmp_path / "run" / "identities.parquet").to_pydict()
    assert kept == {"label": [0, 1, 2], "name": ["a", "b", "b"]}


def test_a_damaged_table_of_names_costs_the_names_alone(tmp_path, caplog):
    make_set(tmp_path / "set", [6], num_classes=3)
    (tmp_path / "set" / "identities.parquet").write_bytes(b"no table")
    config = load_config(write_recipe(tmp_path / "recipe.yaml", tmp_path / "set", tmp_path / "run"))
    config.run_dir.mkdir()
    with caplog.at_level(logging.WARNING):
        claim_run_dir(config)
    assert "no names of identities are kept" in caplog.text
    assert (config.run_dir / "config.yaml").exists()


def test_a_run_in_the_directory_of_a_set_leaves_the_sets_table_alone(tmp_path):
    make_set(tmp_path, [6], num_classes=3)
    write_names(tmp_path, ["a", "b", "c"], count=[2, 2, 2])
    before = (tmp_path / "identities.parquet").read_bytes()
    claim_run_dir(load_config(write_recipe(tmp_path / "recipe.yaml", tmp_path, tmp_path)))
    assert (tmp_path / "identities.parquet").read_bytes() == before
