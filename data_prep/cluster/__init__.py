"""A set whose identities are clusters of embeddings."""
