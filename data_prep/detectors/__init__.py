"""Detectors of faces behind one interface: the cascade, and networks of others in ONNX files."""
