"""Inspect a store: verification, comparison with published arrays, plots; and what this machine can run."""
