"""Training: the loop, what a run starts from, and sweeps over many runs."""
