"""A set without what was found to be wrong in another."""
