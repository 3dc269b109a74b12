"""A model as a service: photos come over HTTP, faces, embeddings and matches go back."""
