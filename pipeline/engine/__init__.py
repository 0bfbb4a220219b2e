"""From an ONNX model to an engine: one file a backend."""
