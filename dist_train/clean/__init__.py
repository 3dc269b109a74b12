"""Faults of a labelled set, found by a model: wrong labels, one person under two, pictures that are there twice."""
