"""Network blocks that backbones and methods are built from."""
