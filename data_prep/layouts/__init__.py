"""Folders of known sets as their makers lay them out."""
