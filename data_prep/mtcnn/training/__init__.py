"""Training of the cascade: crops of photos with known faces, three networks in turn, one file of weights."""
