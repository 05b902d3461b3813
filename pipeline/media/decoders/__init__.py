"""The decoders, one file each; `registry` lists them by name."""
