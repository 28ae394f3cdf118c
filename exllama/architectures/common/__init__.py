"""What architectures share: the typed reader of configurations and the usual stack of decoder blocks."""
