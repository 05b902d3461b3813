"""Features as the releases of this field keep them: folders of arrays, one `.npy` per video or question."""
