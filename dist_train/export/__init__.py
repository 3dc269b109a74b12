"""Deployable forms of a trained backbone."""
