"""The commands of stage one, a file each: they parse options, call the pipeline and show what it returned."""
