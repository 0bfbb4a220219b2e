"""What is known of a model, and where it comes from."""
