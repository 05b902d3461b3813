"""The backbones, a file each; `registry` lists them by name."""
