"""One set from several, joined by the names of their identities."""
