"""Smaller networks out of trained ones: whole channels are left out."""
