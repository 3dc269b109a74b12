"""Who works on the units of a job: processes of this machine, a Slurm array, a Ray cluster."""
