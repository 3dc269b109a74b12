"""Preparation jobs: from a source of photos to a set."""
