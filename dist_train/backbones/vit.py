"""Vision transformers for faces: patches as tokens, no class token, an embedding made of all tokens.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021), with blocks from timm, in the form in which InsightFace
trains them (arcface_torch, `backbones/vit.py`): ReLU6 in the blocks, no biases of queries, keys and values, and at the
end Linear-BN-Linear-BN on all tokens side by side.
"""

import torch
from torch import Tensor, nn

from dist_train.backbones.recompute import Blocks
from dist_train.backbones.token_draws import kept_patches, kept_paths
from dist_train.runtime import extras
from dist_train.runtime.to_device import to_device

INIT_STD = 0.02
EMBED_EPS = 2e-5


class PathDrop(nn.Module):
    """Stochastic depth: a residual branch [B, N, d] without the samples that a step leaves out of it.

    Huang et al., "Deep Networks with Stochastic Depth" (ECCV 2016); samples that stay are divided by the share of those
    that do, so that the mean stays as it is.

    Attributes:
        rate: share of samples left out.
        kept: [B], 0 or 1 / (1 - rate), set before each forward pass in training.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.kept: Tensor | None = None

    def forward(self, branch: Tensor) -> Tensor:
        """[B, N, d] -> [B, N, d]."""
        if not self.training:
            return branch
        if self.kept is None or len(self.kept) != len(branch):
            raise RuntimeError(f"drop_path: draw() has not been called for these {len(branch)} samples")
        return branch * self.kept[:, None, None].to(branch.dtype)

    def extra_repr(self) -> str:
        """As printed in a summary."""
        return f"rate={self.rate:.3f}"


class VisionTransformer(nn.Module):
    """Images [B, 3, S, S] -> embeddings [B, D].

    A picture is cut into (S // patch_px)² patches; pixels that are left over at its right and lower edge are not seen.

    Args:
        patch_px: side of a patch in pixels.
        width: numbers d of a token.
        depth: blocks.
        heads: of the attention.
        image_size: side S of the pictures in pixels.
        embedding_dim: D.
        dropout: share of values dropped before the embedding's layers.
        drop_path: share of samples that the last block's branches leave out; earlier ones less, the first none.
        patch_drop: share of a sample's patches that the blocks do not see in training.

    Raises:
        UserError: timm is not installed.
    """

    def __init__(
        self,
        patch_px: int,
        width: int,
        depth: int,
        heads: int,
        image_size: int,
        embedding_dim: int,
        dropout: float,
        drop_path: float,
        patch_drop: float,
    ) -> None:
        super().__init__()
        extras.require("timm", "backbone.name=vit_* (blocks of timm)")
        from timm.models.vision_transformer import Block

        self._count = (image_size // patch_px) ** 2
        self._kept_count = max(1, int(self._count * (1 - patch_drop)))
        self._patches: Tensor | None = None
        self.patches = nn.Conv2d(3, width, patch_px, patch_px)
        self.places = nn.Parameter(torch.empty(1, self._count, width))
        self.blocks = Blocks(*(Block(width, heads, act_layer=nn.ReLU6, norm_layer=nn.LayerNorm) for _ in range(depth)))
        self._path_drops: list[PathDrop] = []
        for number, block in enumerate(self.blocks):
            if rate := drop_path * number / max(1, depth - 1):
                block.drop_path1, block.drop_path2 = PathDrop(rate), PathDrop(rate)
                self._path_drops += [block.drop_path1, block.drop_path2]
        self.norm = nn.LayerNorm(width)
        if self._kept_count < self._count:
            self.absent = nn.Parameter(torch.empty(1, 1, width))
        else:  # state dicts are the same for every recipe; no optimizer and no exchange of gradients may know it
            self.register_buffer("absent", torch.zeros(1, 1, width))
        self.embed = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(self._count * width, width, bias=False),
            nn.BatchNorm1d(width, eps=EMBED_EPS),
            nn.Linear(width, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=EMBED_EPS, affine=False),  # as in `IResNet`
        )
        for name, parameter in self.named_parameters():
            if name in self.no_weight_decay() or parameter.ndim == 2:
                nn.init.trunc_normal_(parameter, std=INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """See `conventions`: what stands for a place or an absent patch is no matrix."""
        return {"places", "absent"}

    def parts(self) -> dict[str, list[str]]:
        """See `conventions`; a part for each block."""
        blocks = {f"stages.{number + 1}": [f"blocks.{number}"] for number in range(len(self.blocks))}
        return {"stem": ["patches", "places"]} | blocks | {"embed": ["norm", "absent", "embed"]}

    def draw(self, seed: int, step: int, positions: Tensor) -> None:
        """See `conventions`: what branches and patches the samples of the next forward pass leave out."""
        device = self.places.device
        if self._path_drops:
            rates = [drop.rate for drop in self._path_drops]
            kept = kept_paths(seed, step, positions.numpy(), rates)  # [B, branches]
            for drop, column in zip(self._path_drops, to_device(torch.from_numpy(kept), device).unbind(1), strict=True):
                drop.kept = column
        if self._kept_count < self._count:
            chosen = kept_patches(seed, step, positions.numpy(), self._count, self._kept_count)
            self._patches = to_device(torch.from_numpy(chosen), device)  # [B, kept]

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] in [-1, 1] -> [B, D], not normalised."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places  # [B, N, d]
        if self.training and self._kept_count < self._count:
            tokens = self._with_few(tokens)
        else:
            tokens = self.norm(self.blocks(tokens))
        embeddings: Tensor = self.embed(tokens)
        return embeddings

    def _with_few(self, tokens: Tensor) -> Tensor:
        """The blocks on the patches that were drawn; one learned token stands in for all others: [B, N, d] -> same."""
        if self._patches is None or len(self._patches) != len(tokens):
            raise RuntimeError(f"patch_drop: draw() has not been called for these {len(tokens)} samples")
        index = self._patches[:, :, None].expand(-1, -1, tokens.shape[2])  # [B, kept, d]
        seen: Tensor = self.norm(self.blocks(tokens.gather(1, index)))
        return self.absent.to(seen.dtype).expand_as(tokens).scatter(1, index, seen)
