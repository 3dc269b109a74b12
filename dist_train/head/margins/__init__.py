"""Margin-softmax losses: how the target's cosine, and for some the negatives', become logits."""
