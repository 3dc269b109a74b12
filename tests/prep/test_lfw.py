"""LFW as its users go about it, where the real material lies beside the checkout."""

import tarfile
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from data_prep.sources.name_list import read_names
from dist_train.data.pair_list import read_pairs
from dist_train.evaluate.bin import read_bin
from dist_train.evaluate.verification import fold_accuracies
from tests.docs.pages import ROOT
from tests.prep.test_align_cli import run as headcount

REAL = ROOT.parent / "shared" / "real"
LISTS = REAL / "lfw-meta"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no LFW here: ../shared/real")

FOLD = 600  # pairs of the first of ten folds


def accuracy(bin_path: Path) -> float:
    """Of the pretrained network on a verification set: cosine, no flip, ten folds."""
    dataset = read_bin(bin_path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(REAL / "mobilefacenet_y1.onnx", options)
    rows = []
    for start in range(0, len(dataset.images), 32):
        pictures = [
            cv2.imdecode(np.frombuffer(data, np.uint8), 1)[..., ::-1] for data in dataset.images[start : start + 32]
        ]
        rows.append(session.run(None, {"data": np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32)})[0])
    features = np.concatenate(rows)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    distances = ((features[0::2] - features[1::2]).astype(np.float64) ** 2).sum(1)
    return float(fold_accuracies(distances, dataset.same)[0].mean())


@pytest.mark.timeout(900)
def test_a_tenth_of_lfw_by_the_defaults_reaches_the_published_accuracy(tmp_path):
    lines = (LISTS / "pairs.txt").read_text().splitlines()
    (tmp_path / "pairs.txt").write_text("\n".join(["1\t300", *lines[1 : FOLD + 1]]) + "\n")
    wanted = {f"{photo}.jpg" for pair in read_pairs(tmp_path / "pairs.txt") for photo in (pair.left, pair.right)}
    with tarfile.open(REAL / "lfw-deepfunneled.tar") as whole, tarfile.open(tmp_path / "lfw.tar", "w") as part:
        for member in whole:
            if member.name in wanted:
                part.addfile(member, whole.extractfile(member))
    headcount("align", tmp_path / "lfw.tar", tmp_path / "set")
    told = headcount("pairs", tmp_path / "pairs.txt", tmp_path / "set", tmp_path / "lfw.bin")
    assert "all 600 pairs, 300 of the same person, 300 of two" in told
    # 99.33 here, 99.28 on all ten folds; one pair is 0.17. The largest face instead of the main one gives 97.67.
    assert accuracy(tmp_path / "lfw.bin") >= 0.99


def test_lfws_own_lists_are_read_to_their_last_line():
    counts = {"pairs.txt": (6000, 3000), "pairsDevTrain.txt": (2200, 1100), "pairsDevTest.txt": (1000, 500)}
    for name, (count, same) in counts.items():
        pairs = read_pairs(LISTS / name)
        assert (len(pairs), sum(pair.same for pair in pairs)) == (count, same), name
    people = {name: len(read_names(LISTS / f"{name}.txt")) for name in ("people", "peopleDevTrain", "peopleDevTest")}
    assert people == {"people": 5749, "peopleDevTrain": 4038, "peopleDevTest": 1711}
