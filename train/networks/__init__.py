"""Network blocks of which backbones and methods are built."""
