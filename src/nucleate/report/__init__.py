"""Records -> figures and one self-contained page."""
