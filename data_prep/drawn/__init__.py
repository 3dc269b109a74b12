"""Drawn photos of faces: heads on textures, with known boxes and five points."""
