"""The class-sharded classifier."""
