"""Number formats: how each encodes and decodes values."""
