"""Evaluation by the field's protocols, and its report."""
