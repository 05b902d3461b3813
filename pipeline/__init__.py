"""Stage one: raw video to feature store. It knows nothing of training."""
