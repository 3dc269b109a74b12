"""A backbone's weights as files: read from anywhere, written for anybody, averaged."""
