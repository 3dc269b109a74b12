"""Embeddings as a model could give them: identities around centers, groups that are nearer to one another or not."""

import numpy as np
import torch


def simulated(
    seed, groups=4, identities=30, pictures=5, dim=32, common=0.3, planted=None, spread=1.2, planted_common=0.6
):
    """Unit rows [N, D], labels [N] and groups [N]; inside the `planted` group people look more alike."""
    random = np.random.default_rng(seed)
    directions = np.linalg.qr(random.normal(size=(dim, dim)))[0][:groups]
    share = np.full(groups, common)
    if planted is not None:
        share[planted] = planted_common
    whose = np.repeat(np.arange(groups), identities)  # [I]
    centers = random.normal(size=(len(whose), dim)) / np.sqrt(dim) + share[whose, None] * directions[whose]
    rows = np.repeat(centers, pictures, axis=0)
    rows += spread * random.normal(size=rows.shape) / np.sqrt(dim)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = np.repeat(np.arange(len(whose)), pictures)
    return torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(labels), whose[labels]


def collapsed(pictures, dim=512, seed=0):
    """Rows of a model that gives every picture one embedding, whose cosines differ by rounding alone: [N, D]."""
    row = torch.randn(dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(row, dim=0).repeat(pictures, 1)
