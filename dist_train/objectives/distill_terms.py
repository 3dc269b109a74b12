"""Formulas by which embeddings follow a teacher's, over the gathered batch of G samples."""

from torch import Tensor
from torch.nn.functional import normalize


def cosine_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """[]: the mean over samples of 1 - cos(student, teacher), both [G, D]."""
    return 1 - (normalize(student, dim=1) * normalize(teacher, dim=1)).sum(dim=1).mean()


def relation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """[]: the mean squared difference of both matrices of cosines between the samples; [G, D] and [G, Dt].

    Similarity-preserving in the sense of Tung and Mori 2019 and relational in that of Park et al. 2019 (RKD), by
    cosines, which do not depend on the length of embeddings, in place of distances. Diagonals are 1 in both.
    """
    student, teacher = normalize(student, dim=1), normalize(teacher, dim=1)
    return (student @ student.T - teacher @ teacher.T).square().mean()
