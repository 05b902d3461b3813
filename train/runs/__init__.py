"""A run on disk: configuration, presets, checkpoint, log and results."""
