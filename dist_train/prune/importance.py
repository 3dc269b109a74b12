"""How much each weight matters to the embeddings of pictures."""

import torch
from torch import Tensor, nn


def first_order_gradients(network: nn.Module, pictures: Tensor, batch_size: int = 32) -> dict[str, Tensor]:
    """How far the embeddings of pictures move with each weight: the root of the mean squared derivative.

    What moves is the unit embedding. Its derivative is measured along random signs, drawn anew for each number of each
    picture: the square of such a sum has the sum of the squares as its mean (Hutchinson, "A stochastic estimator of the
    trace of the influence matrix", 1989), so that one backward pass serves a whole batch. No labels are needed. Times
    the weight it is the first-order change when the weight is left out (Molchanov et al., "Importance Estimation for
    Neural Network Pruning", CVPR 2019, section 3.1), of the embeddings in place of a loss.

    Args:
        network: in evaluation mode.
        pictures: float32 [N, 3, S, S] in [-1, 1].
        batch_size: pictures in a pass.

    Returns:
        By parameter, in its shape.
    """
    signs = torch.Generator().manual_seed(0)
    parameters = dict(network.named_parameters())
    squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for batch in pictures.split(batch_size):
        unit = nn.functional.normalize(network(batch))
        along = torch.randint(0, 2, unit.shape, generator=signs) * 2.0 - 1
        found = torch.autograd.grad((unit * along).sum(), list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                squares[name] += gradient.square()
    return {name: (each / len(pictures)).sqrt() for name, each in squares.items()}
