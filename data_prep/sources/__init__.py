"""Sources of photos: folders, archives, tables."""
