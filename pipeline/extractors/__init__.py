"""The frozen feature extractors, a file each; `registry` lists them by name."""
