"""How ranges are estimated, stored and handed to TensorRT."""
