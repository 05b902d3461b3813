"""Training: the loop, the initialisation of a run, and sweeps over many runs."""
