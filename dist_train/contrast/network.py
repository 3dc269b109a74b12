"""What contrastive training puts behind a backbone: a projector, and for queries a predictor.

Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers" (ICCV 2021), MoCo v3, section 5: for
transformers a projector of three layers and a predictor of two, BatchNorm after each, no biases. Any backbone has them.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dist_train.backbones.conventions import memory_format, part_places

PROJECTOR_LAYERS = 3
PREDICTOR_LAYERS = 2


def perceptron(layers: int, dim_in: int, hidden_dim: int, dim_out: int) -> nn.Sequential:
    """Linear layers, each with BatchNorm, ReLU between them: [B, dim_in] -> [B, dim_out].

    The last BatchNorm has no parameters, as the embedding's of this field's networks.

    Args:
        layers: linear ones.
        dim_in: numbers of an input.
        hidden_dim: of what lies between two layers.
        dim_out: of an output.
    """

    def modules() -> Iterator[nn.Module]:
        for layer in range(layers):
            last = layer == layers - 1
            yield nn.Linear(hidden_dim if layer else dim_in, dim_out if last else hidden_dim, bias=False)
            yield nn.BatchNorm1d(dim_out, affine=False) if last else nn.BatchNorm1d(hidden_dim)
            if not last:
                yield nn.ReLU(inplace=True)

    return nn.Sequential(*modules())


class QueryNetwork(nn.Module):
    """A backbone, a projector and a predictor in a row: images [B, 3, S, S] -> predictions [B, P], not normalised.

    Args:
        backbone: gives embeddings [B, embedding_dim].
        embedding_dim: D.
        hidden_dim: width of the layers behind the backbone.
        projection_dim: P.
    """

    def __init__(self, backbone: nn.Module, embedding_dim: int, hidden_dim: int, projection_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = perceptron(PROJECTOR_LAYERS, embedding_dim, hidden_dim, projection_dim)
        self.predictor = perceptron(PREDICTOR_LAYERS, projection_dim, hidden_dim, projection_dim)
        self.memory_format: torch.memory_format = memory_format(backbone)

    def parts(self) -> dict[str, list[str]]:
        """See `conventions`: those of the backbone; what stands behind it belongs to the last one."""
        parts = {part: [f"backbone.{place}" for place in places] for part, places in part_places(self.backbone).items()}
        if parts:
            parts[list(parts)[-1]] += ["projector", "predictor"]
        return parts

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] in [-1, 1] -> [B, P]."""
        predictions: Tensor = self.predictor(self.projector(self.backbone(images)))
        return predictions
