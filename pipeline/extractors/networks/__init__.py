"""Networks of which some of the code is ours, with what they are fed."""
