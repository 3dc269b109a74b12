"""Embeddings of many pictures, stored so that a stopped job goes on, and search in galleries made of them."""
