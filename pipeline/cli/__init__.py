"""The commands of stage one, one file each: they parse options, call the pipeline and print its results."""
