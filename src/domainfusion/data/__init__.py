"""Data sets: reading, splitting, batching, augmenting."""
