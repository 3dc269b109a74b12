"""Cases of `benchmarks/evaluate.py`: all pairs of a set, and whether its intervals hold what they say."""

import time

import numpy as np
import torch

from dist_train.evaluate.operating_points import FMRS, points_of
from dist_train.evaluate.pair_counts import count_pairs, order_by_identity
from dist_train.evaluate.resampling import ROUNDS

DIM = 512


def people(identities: int, generator: torch.Generator, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres [I, dim] of people, and how alike their pictures are, [I]: some are easier to know again than others."""
    centres = torch.nn.functional.normalize(torch.randn(identities, dim, generator=generator), dim=1)
    return centres, 0.5 + 0.35 * torch.rand(identities, generator=generator)


def pictures_of(
    centres: torch.Tensor, alike: torch.Tensor, who: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Unit rows of pictures of the people `who` [n], which have a mean cosine of about alike^2 to one another."""
    noise = torch.randn(len(who), centres.shape[1], generator=generator) / centres.shape[1] ** 0.5
    share = alike[who, None]
    return torch.nn.functional.normalize(share * centres[who] + (1 - share**2).sqrt() * noise, dim=1)


def all_pairs() -> dict[str, object]:
    """50,000 pictures of 10,000 people, 1.25e9 pairs; scikit-learn's ROC on all pairs of 3,000 of them as baseline."""
    from sklearn.metrics import roc_curve

    identities, count, part = 10_000, 50_000, 3_000
    generator = torch.Generator().manual_seed(0)
    centres, alike = people(identities, generator, DIM)
    labels = torch.arange(count) % identities
    features = pictures_of(centres, alike, labels, generator)
    begin = time.perf_counter()
    ordered = order_by_identity(features, labels, "made")
    points = points_of(ordered, count_pairs(ordered, FMRS))
    ours = time.perf_counter() - begin

    begin = time.perf_counter()
    rows, who = ordered.features[:part], ordered.identity[:part]
    left, right = np.triu_indices(part, 1)
    scores = (rows @ rows.T).numpy()[left, right]
    roc_curve(who[left] == who[right], scores)
    baseline = (time.perf_counter() - begin) * ordered.impostor_pairs / len(left)
    return {
        "ours": ours,
        "baseline": baseline,
        "ratio": baseline / ours,
        "unit": "s; baseline: one product and scikit-learn's ROC on 3,000 of the pictures, times the ratio of pairs",
        "pictures": count,
        "pairs": count * (count - 1) // 2,
        "identities": identities,
        "dim": DIM,
        "fnmr_at_fmr": {f"{point.fmr:g}": round(point.fnmr, 6) for point in points},
    }


def intervals() -> dict[str, object]:
    """200 sets of 200 people: how often the interval of FNMR holds the true one, at each rate that a set carries."""
    sets, identities, dim = 200, 200, 32
    truth = _true_fnmrs(dim)
    held = dict.fromkeys(FMRS, 0)
    widths: dict[float, list[float]] = {fmr: [] for fmr in FMRS}
    resolved = set(FMRS)
    begin = time.perf_counter()
    for number in range(sets):
        generator = torch.Generator().manual_seed(1 + number)
        centres, alike = people(identities, generator, dim)
        sizes = torch.randint(1, 8, (identities,), generator=generator)
        labels = torch.repeat_interleave(torch.arange(identities), sizes)
        ordered = order_by_identity(pictures_of(centres, alike, labels, generator), labels, "made")
        for point in points_of(ordered, count_pairs(ordered, FMRS)):
            held[point.fmr] += point.fnmr_low <= truth[point.fmr] <= point.fnmr_high
            widths[point.fmr].append(point.fnmr_high - point.fnmr_low)
            if not point.resolved:
                resolved.discard(point.fmr)
    seconds = (time.perf_counter() - begin) / sets
    shares = {fmr: held[fmr] / sets for fmr in sorted(resolved, reverse=True)}
    worst = max(shares.values(), key=lambda share: abs(share - 0.95))
    return {
        "ours": worst,
        "baseline": 0.95,
        "ratio": worst / 0.95,
        "unit": "share of the intervals that hold the true FNMR, at the rate where it is farthest from 0.95",
        "held": {f"{fmr:g}": share for fmr, share in shares.items()},
        "true_fnmr": {f"{fmr:g}": round(truth[fmr], 5) for fmr in shares},
        "mean_width": {f"{fmr:g}": round(float(np.mean(widths[fmr])), 5) for fmr in shares},
        "sets": sets,
        "identities": identities,
        "rounds": ROUNDS,
        "seconds_a_set": seconds,
    }


def _true_fnmrs(dim: int, pairs: int = 1 << 18, rounds: int = 64) -> dict[float, float]:
    """FNMR of all people by FMR, from pairs that share nobody: 16 million of two people, half a million of one."""
    generator = torch.Generator().manual_seed(0)
    apart, together = [], torch.empty(0)
    for number in range(rounds):
        centres, alike = people(2 * pairs, generator, dim)
        pictures = pictures_of(centres, alike, torch.arange(2 * pairs), generator)
        scores = (pictures[:pairs] * pictures[pairs:]).sum(dim=1)
        apart.append(scores.topk(int(pairs * 0.11)).values)
        if number == 0:
            again = pictures_of(centres, alike, torch.arange(2 * pairs), generator)
            together = (pictures * again).sum(dim=1).sort().values
    ranked = torch.cat(apart).sort(descending=True).values
    thresholds = [ranked[int(fmr * pairs * rounds)] for fmr in FMRS]
    return {
        fmr: int(torch.searchsorted(together, value)) / len(together)
        for fmr, value in zip(FMRS, thresholds, strict=True)
    }
