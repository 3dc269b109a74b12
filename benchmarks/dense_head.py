"""The ordinary form of a sampled, class-sharded ArcFace head, for comparison: dense gradients by autograd.

The shard is one `nn.Parameter`; chosen rows are indexed under autograd, so their gradient is a dense tensor of the
whole shard and `torch.optim.SGD` passes over all rows and all momentum at every step. Logits are kept whole.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the name everybody reads
from torch import Tensor, nn


class _SplitCrossEntropy(torch.autograd.Function):
    """Cross entropy of logits [G, k] whose columns are split over ranks; two all-reduces and one for the loss."""

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:  # noqa: ANN001 - autograd's context
        top = logits.amax(dim=1, keepdim=True)
        dist.all_reduce(top, dist.ReduceOp.MAX)
        weights = logits.sub_(top).exp_()
        total = weights.sum(dim=1, keepdim=True)
        dist.all_reduce(total)
        weights.div_(total)
        here = torch.where(target >= 0)[0]
        probability = weights.new_zeros(len(weights))
        probability[here] = weights[here, target[here]]
        dist.all_reduce(probability)
        ctx.save_for_backward(weights, target)
        return -probability.clamp_min(1e-30).log().mean()

    @staticmethod
    def backward(ctx, outer: Tensor) -> tuple[Tensor, None]:  # noqa: ANN001 - autograd's context
        weights, target = ctx.saved_tensors
        here = torch.where(target >= 0)[0]
        weights[here, target[here]] -= 1
        return weights.mul_(outer / len(weights)), None


class DenseHead:
    """ArcFace (s = 64, m = 0.5) with uniform sampling of negatives; SGD with momentum 0.9.

    Args:
        num_classes: C over all ranks; those of a rank are C / W.
        dim: D.
        rate: share of a rank's classes in each step's softmax.
        rank: this rank.
        world_size: W.
    """

    def __init__(self, num_classes: int, dim: int, rate: float, rank: int, world_size: int) -> None:
        self.rows = num_classes // world_size
        self.start = rank * self.rows
        self.rate = rate
        self.rank, self.world_size = rank, world_size
        self.weight = nn.Parameter(torch.empty(self.rows, dim).normal_(0, 0.01))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step(self, embeddings: Tensor, labels: Tensor) -> None:
        """One training step on local embeddings [B, D], which receive their gradient."""
        every = [torch.empty_like(embeddings) for _ in range(self.world_size)]
        dist.all_gather(every, embeddings.detach())
        all_labels = [torch.empty_like(labels) for _ in range(self.world_size)]
        dist.all_gather(all_labels, labels)
        gathered = torch.cat(every).requires_grad_()
        target = torch.cat(all_labels) - self.start
        target[(target < 0) | (target >= self.rows)] = -1
        weight: Tensor = self.weight
        if self.rate < 1:
            positives = target[target >= 0].unique()
            order = torch.rand(self.rows)
            order[positives] = 2.0
            index = order.topk(int(self.rate * self.rows))[1].sort()[0]
            target = torch.where(target >= 0, torch.searchsorted(index, target), -1)
            weight = self.weight[index]
        cosines = F.linear(F.normalize(gathered), F.normalize(weight))
        here = torch.where(target >= 0)[0]
        angles = cosines[here, target[here]].clamp(-1 + 1e-6, 1 - 1e-6).acos()
        cosines = cosines.index_put((here, target[here]), (angles + 0.5).cos())
        self.optimizer.zero_grad()
        _SplitCrossEntropy.apply(cosines * 64.0, target).backward()
        assert gathered.grad is not None
        dist.all_reduce(gathered.grad)
        embeddings.grad = gathered.grad.chunk(self.world_size)[self.rank]
        self.optimizer.step()
