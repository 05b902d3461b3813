"""The commands of stage two: options and output only. None loads torch before it runs."""
