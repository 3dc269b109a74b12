"""Evaluation: a verification set against the network alone, exact 1:N search, IJB-C's pairs, retrieval.

Each case runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from all_pairs import all_pairs, intervals
from line import print_line
from sklearn.metrics import roc_curve

from dist_train.backbones import BackboneConfig, build_backbone
from dist_train.evaluate.bin import VerificationSet
from dist_train.evaluate.embedded_set import EmbeddedSet
from dist_train.evaluate.group_results import GroupsResult
from dist_train.evaluate.groups import evaluate_groups
from dist_train.evaluate.identification import search_gallery
from dist_train.evaluate.ijb import judge_pairs_of_templates, score_templates
from dist_train.evaluate.ijb_layout import Layout, read_pairs
from dist_train.evaluate.quality import judge_quality
from dist_train.evaluate.rerank import reranked
from dist_train.evaluate.retrieval import Scores, block_of, cosines, judge_retrieval, ordered
from dist_train.evaluate.search import GALLERY_BLOCK, QUERY_BLOCK
from dist_train.evaluate.verification import evaluate_verification

DIM = 512


def unit_rows(count: int, seed: int) -> torch.Tensor:
    """Random unit rows [count, 512], made in place."""
    rows = torch.empty(count, DIM).normal_(generator=torch.Generator().manual_seed(seed))
    return rows.div_(rows.norm(dim=1, keepdim=True))


def verification() -> dict[str, object]:
    """6,000 pairs of 112 x 112 JPEG through the smallest network, where everything else weighs most."""
    pairs, size, batch = 6000, 112, 64
    generator = np.random.default_rng(0)
    # Smooth pictures compress to about the size of real faces.
    base = generator.integers(0, 256, (200, 14, 14, 3), dtype=np.uint8)
    pictures = [cv2.resize(each, (size, size), interpolation=cv2.INTER_CUBIC) for each in base]
    noisy = [np.clip(p + generator.normal(0, 12, p.shape), 0, 255).astype(np.uint8) for p in pictures]
    encoded = [cv2.imencode(".jpg", each, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for each in noisy]
    dataset = VerificationSet("made", [encoded[i % 200] for i in range(2 * pairs)], np.arange(pairs) % 2 == 0)
    backbone = build_backbone(BackboneConfig(name="tiny", embedding_dim=DIM), size).eval()
    images = torch.randn(batch, 3, size, size)

    def forward_rate(rounds: int = 60) -> float:
        with torch.inference_mode():
            backbone(images)
            begin = time.perf_counter()
            for _ in range(rounds):
                backbone(images)
            return rounds * batch / (time.perf_counter() - begin)

    before = forward_rate()
    begin = time.perf_counter()
    evaluate_verification(backbone, dataset, size, batch)
    ours = 4 * pairs / (time.perf_counter() - begin)
    alone = (before + forward_rate()) / 2  # the machine may have changed its mind in between
    return {
        "ours": ours,
        "baseline": alone,
        "ratio": ours / alone,
        "unit": "forward passes of a picture/s; baseline is the network alone",
        "pairs": pairs,
        "jpeg_bytes": int(np.mean([len(each) for each in encoded])),
        "network": "tiny, 112 px",
    }


def identification() -> dict[str, object]:
    """10,000 probes against 1,000,000 at random, the dearest case: no mate comes first, all places are counted."""
    probes, entries = unit_rows(10_000, 0), unit_rows(1_000_000, 1)
    labels = torch.arange(len(entries))
    left, right = probes[:QUERY_BLOCK], entries[:GALLERY_BLOCK].T
    out = torch.mm(left, right)

    def product_rate(rounds: int = 20) -> float:
        begin = time.perf_counter()
        for _ in range(rounds):
            torch.mm(left, right, out=out)
        return rounds * 2 * out.numel() * DIM / (time.perf_counter() - begin) / 1e9

    before = product_rate()
    begin = time.perf_counter()
    search_gallery(probes, labels[: len(probes)] * 7, entries, labels)
    seconds = time.perf_counter() - begin
    gemm = (before + product_rate()) / 2  # the machine may have changed its mind in between
    ours = 2 * len(probes) * len(entries) * DIM / seconds / 1e9
    return {
        "ours": ours,
        "baseline": gemm,
        "ratio": ours / gemm,
        "unit": "GFLOP/s; baseline is the matrix product alone, by torch.mm",
        "seconds": seconds,
        "probes": len(probes),
        "gallery": len(entries),
        "dim": DIM,
    }


def retrieval(*, rerank: bool = False) -> dict[str, object]:
    """As many pictures and products as the test part of Stanford Online Products, each among all others.

    A picture's cosine to its mates is 0.15 on average, so that hundreds of others come before the last of them.
    """
    pictures, products = 60_502, 11_316
    labels = torch.arange(pictures) % products
    features = unit_rows(pictures, 0).mul_(0.85**0.5).add_(unit_rows(products, 1)[labels], alpha=0.15**0.5)
    features /= features.norm(dim=1, keepdim=True)
    searches = ordered(features, labels)
    del features

    def product(scores: Scores) -> float:
        begin = time.perf_counter()
        step = block_of(pictures)
        for start in range(0, pictures, step):
            scores(slice(start, min(start + step, pictures)))
        return time.perf_counter() - begin

    before = product(cosines(searches))
    begin = time.perf_counter()
    judged = judge_retrieval(searches, reranked(searches) if rerank else cosines(searches))
    ours = time.perf_counter() - begin
    alone = (before + product(cosines(searches))) / 2  # the machine may have changed its mind in between
    return {
        "ours": ours,
        "baseline": alone,
        "ratio": alone / ours,
        "unit": "s; baseline is the matrix product alone",
        "pictures": pictures,
        "identities": products,
        "dim": DIM,
        "map": judged.figures.mean_ap,
        "minp": judged.figures.minp,
    }


def ijbc_pairs() -> dict[str, object]:
    """Reading, scoring and judging as many pairs as IJB-C has."""
    import pyarrow as pa
    from pyarrow import csv

    templates, pairs, positives = 23_124, 15_658_489, 19_557
    features = unit_rows(templates, 0)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "meta").mkdir()
        with (root / "meta" / "ijbc_template_pair_label.txt").open("wb") as file:
            for start in range(0, pairs, 1 << 20):
                numbers = np.arange(start, min(start + (1 << 20), pairs))
                columns = [generator.integers(0, templates, len(numbers), dtype=np.int32) for _ in range(2)]
                table = pa.table([*columns, (numbers < positives).astype(np.int32)], names=["a", "b", "c"])
                csv.write_csv(table, file, csv.WriteOptions(include_header=False, delimiter=" "))
        empty = np.empty(0)
        layout = Layout("ijbc", root, [], empty, empty, empty, empty, empty, np.arange(templates))
        begin = time.perf_counter()
        judged = judge_pairs_of_templates("ijbc", features, read_pairs(layout))
        ours = time.perf_counter() - begin
        peak = peak_rss_mb()
        begin = time.perf_counter()
        plain_scoring(root / "meta" / "ijbc_template_pair_label.txt", features.numpy(), rows=pairs // 20)
        baseline = 20 * (time.perf_counter() - begin)
    return {
        "ours": ours,
        "baseline": baseline,
        "ratio": baseline / ours,
        "unit": "s; baseline: numpy's text reader, fancy indexing, scikit-learn's ROC; 1/20 of the pairs, times 20",
        "pairs": judged.pairs,
        "templates": templates,
        "peak_rss_mb": peak,
    }


def plain_scoring(path: Path, features: np.ndarray, rows: int) -> None:
    """The usual way: numpy's text reader, 100,000 pairs at a time, then a ROC."""
    table = np.loadtxt(path, dtype=np.int64, max_rows=rows)
    scores = np.concatenate(
        [
            (features[part[:, 0]] * features[part[:, 1]]).sum(axis=1)
            for part in np.array_split(table, max(1, rows // 100_000))
        ]
    )
    roc_curve(np.arange(rows) < 1000, scores)


def quality() -> dict[str, object]:
    """As many genuine pairs as IJB-C has pairs in all: scored, discarded by their pictures' quality, resampled."""
    pictures, people, pairs = 23_124, 3_531, 15_658_489
    features, generator = unit_rows(pictures, 0), np.random.default_rng(0)
    worth = generator.random(pictures)
    whose = np.arange(pictures) * people // pictures
    left, right = (generator.integers(0, pictures, pairs, dtype=np.int32) for _ in range(2))
    begin = time.perf_counter()
    scores = score_templates(features, left, right)
    missed = scores < -0.05
    of_pair = np.minimum(worth[left], worth[right])
    title = ("made", "random", 1e-3)
    judged = judge_quality(missed, of_pair, whose[left], threshold=-0.05, pictures=pictures, title=title)
    ours = time.perf_counter() - begin
    peak = peak_rss_mb()
    begin = time.perf_counter()
    bounds = np.quantile(of_pair, np.arange(31) / 100)
    for bound in bounds:
        missed[of_pair >= bound].mean()
    baseline = time.perf_counter() - begin
    return {
        "ours": ours,
        "baseline": baseline,
        "ratio": baseline / ours,
        "unit": "s; baseline: the error of scored pairs at 31 shares by numpy's masks, without scores and an interval",
        "pairs": judged.pairs,
        "pauc_of_random": judged.share,
        "peak_rss_mb": peak,
    }


def groups() -> dict[str, object]:
    """100 sets with a group that has three times the others' FMR, and 100 fair ones: which groups are flagged."""
    planted, fair, ratios = [], [], []
    begin = time.perf_counter()
    for seed in range(100):
        for common, flags in ((0.39, planted), (0.15, fair)):
            result = drawn_groups(seed, common)
            flags.append([group.worse_fmr for group in result.groups])
            if flags is planted:
                others = np.mean([group.fmr.share for group in result.groups[1:]])
                ratios.append(result.groups[0].fmr.share / others)
    return {
        "ours": float(np.array(planted)[:, 0].mean()),
        "unit": "share of sets whose planted group is flagged",
        "planted_ratio": float(np.median(ratios)),
        "others_flagged": float(np.array(planted)[:, 1:].any(axis=1).mean()),
        "fair_sets_flagged": float(np.array(fair).any(axis=1).mean()),
        "sets": 100,
        "pictures": 1200,
        "groups": 4,
        "seconds": time.perf_counter() - begin,
    }


def drawn_groups(seed: int, common: float) -> GroupsResult:
    """Groups of 60 identities with 5 pictures, at FMR 1e-2; people of the first share `common`, of the others 0.15."""
    groups, identities, pictures, dim = 4, 60, 5, 64
    random = np.random.default_rng(seed)
    whose = np.repeat(np.arange(groups), identities)
    directions = np.linalg.qr(random.normal(size=(dim, dim)))[0][:groups]
    shared = np.array([common, 0.15, 0.15, 0.15])[whose, None] * directions[whose]
    centers = random.normal(size=(len(whose), dim)) / np.sqrt(dim) + shared
    rows = np.repeat(centers, pictures, axis=0)
    rows += random.normal(size=rows.shape) / np.sqrt(dim)
    features = torch.nn.functional.normalize(torch.from_numpy(rows).float(), dim=1)
    labels = torch.arange(len(whose)).repeat_interleave(pictures)
    column = {"group": [f"group {number}" for number in whose[labels]]}
    keys = [str(number) for number in range(len(rows))]
    made = EmbeddedSet("made", Path("made"), features, torch.ones(len(rows)), labels, keys, [None] * len(rows), column)
    return evaluate_groups(made, "group", 1e-2)


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


CASES = {
    "verification": verification,
    "identification": identification,
    "ijbc_pairs": ijbc_pairs,
    "retrieval": retrieval,
    "all_pairs": all_pairs,
    "intervals": intervals,
    "rerank": partial(retrieval, rerank=True),
    "quality": quality,
    "groups": groups,
}


def main() -> None:
    """Run one case, or each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES)
    case = parser.parse_args().case
    if case is None:
        for name in CASES:
            subprocess.run([sys.executable, __file__, "--case", name], check=True)
        return
    result = CASES[case]()
    line = {"benchmark": "evaluate", "case": case, "peak_rss_mb": peak_rss_mb(), **result}
    line |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()}
    print_line(rounded)


if __name__ == "__main__":
    main()
