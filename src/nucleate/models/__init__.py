"""Networks whose width is an argument."""
