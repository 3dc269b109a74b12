"""Classification by neighbours: against the plain formula, the same on any number of ranks, and in a run's figures."""

import json
import math

import numpy as np
import pytest
import torch

from dist_train.errors import UserError
from dist_train.evaluate.knn import classify, evaluate_knn
from dist_train.runtime.ranks import ALONE
from tests.evaluate.models import write_color_model
from tests.launch.recipes import headcount_here
from tests.ranks import ranks_here, run_ranks
from tests.sets import write_set


def drawn(pictures=40, dim=8, identities=6):
    """Unit rows [N, D] near a direction of their label, the last label with one picture."""
    random = np.random.default_rng(3)
    labels = np.append(random.integers(0, identities, pictures - 1), identities)
    rows = random.normal(size=(identities + 1, dim))[labels] + 1.2 * random.normal(size=(pictures, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def plain(rows, labels, k):
    """Share of pictures, of those whose label has another one, that are voted for rightly; in Python alone."""
    right = judged = 0
    for number, own in enumerate(labels):
        others = [other for other in range(len(labels)) if other != number]
        cosines = {other: float(rows[number].astype(float) @ rows[other].astype(float)) for other in others}
        votes = {}
        for other in sorted(others, key=lambda other: -cosines[other])[:k]:
            votes[labels[other]] = votes.get(labels[other], 0.0) + math.exp(cosines[other] / 0.07)
        if list(labels).count(own) > 1:
            judged += 1
            right += max(votes, key=votes.get) == own
    return right / judged


def classified(rank, world_size, k):
    rows, labels = drawn()
    return classify(torch.from_numpy(rows), torch.from_numpy(labels), k, ranks_here(rank, world_size))


@pytest.mark.parametrize("k", [1, 5, 39])
def test_votes_of_neighbours_equal_the_plain_formula(k):
    rows, labels = drawn()
    expected = plain(rows, labels, k)
    assert 0.3 < expected < 1
    assert classified(0, 1, k) == pytest.approx(expected)


def test_three_ranks_classify_as_one_does():
    assert run_ranks(3, classified, 5) == [classified(0, 1, 5)] * 3


def test_a_picture_is_not_its_own_neighbour_even_among_copies_of_it():
    rows = torch.nn.functional.normalize(torch.ones(6, 4), dim=1)
    assert classify(rows, torch.tensor([0, 0, 0, 1, 1, 1]), 5) == 0.0  # 3 of the 5 others are of the other label


def test_eval_prints_and_writes_the_accuracy_of_labelled_sets(tmp_path):
    write_set(tmp_path / "held", classes=5, views=4)
    model = write_color_model(tmp_path / "model.onnx", size=32)
    done = headcount_here(
        "eval", model, "--knn", tmp_path / "held", "--json", tmp_path / "f.json", "--input-range", "-1..1", "--no-flip"
    )
    assert done.returncode == 0, done.stderr
    assert "By neighbours" in done.stdout
    (model,) = json.loads((tmp_path / "f.json").read_text())
    (found,) = model["knn"]
    assert (found["set"], found["pictures"], found["identities"], found["neighbours"]) == ("held", 20, 5, 19)
    assert 0.2 < found["accuracy"] <= 1


def test_a_set_in_which_no_label_has_two_pictures_is_refused(tmp_path):
    write_set(tmp_path / "held", classes=3, views=1)
    with pytest.raises(UserError, match="no label has two pictures"):
        evaluate_knn(lambda images: images.flatten(1), tmp_path / "held", 32, 8, 5, ALONE)
