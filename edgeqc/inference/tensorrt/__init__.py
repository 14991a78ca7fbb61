"""The TensorRT backend: plans built on the box, and the engine that runs them.

Strongly typed networks and name-based I/O only, so that one code path does for TensorRT 10.3 to 11: a precision is put
into the ONNX file, never asked of the builder. The modules take the vendor's module as an argument, `vendor.load()`
gives it: `tensorrt` on a box, `tensorrt_rtx` or a double in tests.
"""
