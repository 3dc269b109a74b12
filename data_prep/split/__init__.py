"""One set parted into two whose identities are disjoint: one to train on, one to measure with."""
