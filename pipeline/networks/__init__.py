"""Networks whose code is ours, with what they are fed. They need torch: extractors import them when they load."""
