"""Measure how a network's classes collapse into a simplex."""
