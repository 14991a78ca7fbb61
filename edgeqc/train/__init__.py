"""Training of model packages: needs the `train` extra (torch, onnx); the daemon never imports it."""
