"""Training: the loop, the programs that it runs, and the run around it."""
