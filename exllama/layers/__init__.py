"""The modules that models are made of; each owns tensors and records its computation on a plan."""
