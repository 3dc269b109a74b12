"""Contrastive pre-training: what it adds to a backbone, the pictures' way between ranks, keys and loss."""
