"""The missing-modality methods, one file each; `registry` lists them by name."""
