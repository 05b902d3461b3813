"""The frozen feature extractors, one file per network; `registry` lists them by name."""
