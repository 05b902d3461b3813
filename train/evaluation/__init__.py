"""Evaluation of a trained run: predictions, scenarios, floors, missing-rate curves, recovery error, intervals."""
