"""The formulas: each takes a `Given` and returns one score tensor by parameter name; larger stays."""
