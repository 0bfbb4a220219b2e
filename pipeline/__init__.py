"""The stages of a build, in the order of work."""
