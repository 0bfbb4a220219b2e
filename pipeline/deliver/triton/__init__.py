"""A build as an entry of a model repository of the Triton Inference Server."""
