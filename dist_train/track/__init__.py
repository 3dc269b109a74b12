"""Figures of a run: where they go, and how they are taken."""
