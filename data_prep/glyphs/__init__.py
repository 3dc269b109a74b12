"""Identity sets rendered from fonts: every character is an identity, every font a view of it."""
