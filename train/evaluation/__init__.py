"""What a trained run answers: predictions, scenarios, floors, missing-rate curves, recovery error."""
