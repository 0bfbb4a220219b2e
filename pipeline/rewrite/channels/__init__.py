"""The channels of quantized activations: what they are like, and what makes them alike."""
