"""The feature store, the interface of the two stages: `schema` is its layout, `reader` and `writer` access it."""
