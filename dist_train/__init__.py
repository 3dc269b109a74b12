"""Training, evaluation and export of embedding models with a class-sharded head."""
