"""Training on samples with several labels, on one rank."""

import json

import pytest

from dist_train.data.manifest import Manifest
from tests.data.sets import encode, picture, write_tar
from tests.single import losses, trainer


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A set of eight identities, each sample of which has one or two neighbours as further labels."""
    path = tmp_path_factory.mktemp("data") / "set"
    path.mkdir()
    samples = []
    for number in range(96):
        label = number % 8
        record = json.dumps({"labels": [label, (label + 1) % 8, (label + 2) % 8][: 2 + number % 2]})
        members = [("jpg", encode(picture(label))), ("cls", b"%d" % label), ("json", record.encode())]
        samples.append([(f"{number:04d}.{kind}", data) for kind, data in members])
    Manifest(32, 8, (write_tar(path / "x-000000.tar", samples),)).save(path)
    return path


def test_a_run_learns_all_labels_of_its_samples(tmp_path, listed):
    found = {}
    for most in (1, 3):
        home = tmp_path / str(most)
        home.mkdir()
        made = trainer(home, listed, data__labels_per_sample=most, head__margin="cosface", head__m3=0.0)
        found[most] = losses(made, 5)
        rows = made.program.head.class_centers()
        made.close()
        assert rows.isfinite().all()
    assert found[3][0] != found[1][0]
    assert found[3][-1] < found[3][0]
