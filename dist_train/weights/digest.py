"""The digest of a network's weights, by which galleries, thresholds and compatible networks know it."""

import hashlib

import torch
from torch import nn


def digest_weights(backbone: nn.Module) -> str:
    """The hexadecimal SHA-256 of a network's weights: of names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
