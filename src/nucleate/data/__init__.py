"""Points and labels: sources, readers, noise."""
