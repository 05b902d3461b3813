"""What models are given: the features of a store, the questions of a split, and what is missing from them."""
