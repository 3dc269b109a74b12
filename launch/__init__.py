"""Starting jobs: one process, torchrun, Slurm; and the command line."""
