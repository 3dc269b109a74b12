"""From raw pictures to sharded WebDataset tars."""
