"""Verification, identification and reports."""
