"""Terms of a loss over embeddings."""
