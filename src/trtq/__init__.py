"""From a float ONNX model to a verified INT8 TensorRT engine."""
