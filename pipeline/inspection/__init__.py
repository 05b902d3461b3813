"""Look at what a store holds: verification, comparison with published arrays, plots, and what this machine can run."""
