"""The rungs of a ladder of tickets: which masks, compared with what, trained how, and what they look like."""
