"""The feature store: the contract between the two stages. `schema` says what it holds, `reader` and `writer` do it."""
