"""The rotation of what flows past the blocks of a transformer, folded into its weights (QuaRot)."""
