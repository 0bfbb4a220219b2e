"""What a build leaves behind."""
