"""The loop: a generator of records."""
