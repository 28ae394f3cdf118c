"""Models in memory, and running batches through them."""
