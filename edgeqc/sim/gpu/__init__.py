"""A pretended GPU: the driver library underneath NVIDIA's real bindings, and a TensorRT that computes on the CPU."""
