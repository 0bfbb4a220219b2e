"""Which calls and options of TensorRT 8-10 a script uses that TensorRT 10 and 11 removed."""
