"""The verbs of the registry: what `sdkit models` does, as functions."""
