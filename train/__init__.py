"""Stage two: train and evaluate models from feature stores. Only the stores are read, never a video."""
