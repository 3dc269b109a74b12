"""Engines, which carry the units of a job to workers: processes of this machine, a Slurm array, a Ray cluster."""
