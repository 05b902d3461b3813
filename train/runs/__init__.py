"""A run on disk: configuration, presets, checkpoints, log and result rows."""
