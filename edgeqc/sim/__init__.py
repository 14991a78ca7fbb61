"""A simulated line: camera, PLC, broker and the parts that run on it."""
