"""How fast models embed pictures on this machine, several side by side."""
