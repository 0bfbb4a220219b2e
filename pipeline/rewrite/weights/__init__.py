"""Weights in 8 or 4 bits, activations untouched: formats, methods, and how a graph holds them."""
