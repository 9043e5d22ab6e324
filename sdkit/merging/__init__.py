"""Changing weights by adapters and by other models: which tensors, how strongly, and the plan the engine runs."""
