"""Data preparation: sharded WebDataset tars made of raw pictures."""
