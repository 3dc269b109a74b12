"""Clusters of embeddings: pictures of unknown identities become those of identities."""
