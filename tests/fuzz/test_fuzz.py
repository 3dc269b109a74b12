"""A short campaign over every reader, and what a campaign must be able to find."""

import shutil

import pytest

from tests.fuzz import faulty
from tests.fuzz.__main__ import MODULE
from tests.fuzz.campaign import campaign, shares
from tests.fuzz.reader import FIXED, Scene
from tests.fuzz.readers import READERS
from tests.fuzz.worker import make_input

INPUTS = 12 * len(READERS)


@pytest.mark.timeout(900)
def test_no_reader_answers_a_changed_input_with_a_traceback_a_hang_or_memory_without_end(tmp_path):
    try:
        outcome = campaign(READERS, MODULE, INPUTS, 0, 1, tmp_path / "failed")
    finally:
        shutil.rmtree(FIXED, ignore_errors=True)
    assert outcome.sound, outcome.table()
    assert sum(counts.total() for counts in outcome.counts.values()) >= INPUTS
    verdicts = {verdict for counts in outcome.counts.values() for verdict in counts}
    assert verdicts == {"accepted", "refused"}


@pytest.mark.timeout(300)
def test_each_kind_of_fault_is_found_and_the_campaign_goes_on(tmp_path):
    outcome = campaign(faulty.READERS, faulty.__name__, 2 * len(faulty.READERS), 0, 1, tmp_path / "failed", most_s=5)
    for kind in faulty.KINDS:
        assert set(outcome.counts[kind]) == {kind}, kind
        assert outcome.counts[kind].total() == 2
    assert {fault.verdict for fault in outcome.faults.values()} == set(faulty.KINDS) - {"refused"}
    assert all(fault.count == 2 and fault.saved.read_bytes() != faulty.SOUND for fault in outcome.faults.values())
    (problem,) = outcome.problems
    assert problem.startswith("seed: its own seed 0 (x) is not accepted")
    assert not outcome.sound
    assert "TRACEBACK x2" in outcome.table()


def test_the_same_seed_gives_the_same_inputs_and_another_one_others():
    reader = READERS["recipe"]
    first, again, other = ([make_input(reader, seed, n) for n in range(20)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_reader_gets_its_share_and_none_gets_nothing():
    counts = shares(READERS, 20_000)
    assert sum(counts.values()) >= 20_000
    assert min(counts.values()) > 10
    assert set(shares(READERS, 1).values()) == {1}


def test_mutations_change_their_inputs():
    for name in ("recipe", "manifest.json", "tars adopted", "picture: training", "prep: parquet", "verification .bin"):
        scenes = READERS[name].scenes()
        assert all(isinstance(scene, Scene) and scene.target in scene.files for scene in scenes)
        seeds = {scene.files[scene.target] for scene in scenes}
        inputs = [make_input(READERS[name], 0, number)[1] for number in range(50)]
        assert sum(content not in seeds for content in inputs) > 40, name
