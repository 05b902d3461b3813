"""Input data of models: features of a store, questions of a split, and missing modalities."""
