"""A job from a source to a set."""
