"""Where data lies, and in which formats: each store and each format knows nothing of the others."""
