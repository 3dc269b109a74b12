"""What a run starts from: weights of a backbone, rows of a head, and what of them stands still."""
