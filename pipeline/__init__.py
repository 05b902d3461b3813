"""Stage one: from raw videos to a feature store."""
