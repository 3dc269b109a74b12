"""The figures of a run: meters that take them, and trackers that store them."""
