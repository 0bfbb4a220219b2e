"""What the model is, and what of it will be quantized."""
