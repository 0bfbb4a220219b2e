"""How fast models and engines run: turns of each, one process a candidate, and what the machine was doing."""
