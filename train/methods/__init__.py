"""The missing-modality methods, a file each; `registry` lists them by name."""
