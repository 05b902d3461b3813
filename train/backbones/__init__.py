"""The backbones, one file each; `registry` lists them by name."""
