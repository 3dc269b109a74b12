"""The command line, and the starting of jobs: one process, torchrun, Slurm."""
