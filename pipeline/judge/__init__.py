"""How far the quantized model is from the float one."""
