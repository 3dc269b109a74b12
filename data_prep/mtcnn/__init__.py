"""Face detection by multi-task cascaded convolutional networks, batched over pictures of mixed sizes."""
