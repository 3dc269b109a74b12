"""What a process stands on: ranks, files, signals, memory, the terminal."""
