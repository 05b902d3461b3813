"""The extraction run: plan, coordinator, workers."""
