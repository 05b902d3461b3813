"""Official checkpoints, converted to runs."""
