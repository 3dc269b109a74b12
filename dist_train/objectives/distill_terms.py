"""Formulas by which embeddings follow a teacher's, over the gathered batch of G samples, k of which are taught."""

from torch import Tensor
from torch.nn.functional import normalize


def cosine_distance(student: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """[]: the mean over taught samples of 1 - cos(student, teacher), both [G, D]; 0 where `known` [G] is none."""
    cosines = (normalize(student, dim=1) * normalize(teacher, dim=1)).sum(dim=1)
    return ((1 - cosines) * known).sum() / known.sum().clamp(min=1)


def relation_distance(student: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """[]: the mean squared difference of both k x k matrices of cosines between taught samples; [G, D] and [G, Dt].

    Similarity-preserving in the sense of Tung and Mori 2019 and relational in that of Park et al. 2019 (RKD), by
    cosines, which do not depend on the length of embeddings, in place of distances. Diagonals are 1 in both.
    """
    student, teacher = normalize(student, dim=1), normalize(teacher, dim=1)
    pairs = known[:, None] & known
    return ((student @ student.T - teacher @ teacher.T).square() * pairs).sum() / pairs.sum().clamp(min=1)
