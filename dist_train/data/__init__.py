"""Shards, sample order, decoding and augmentation."""
