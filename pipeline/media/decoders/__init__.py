"""The decoders, a file each; `registry` lists them by name."""
