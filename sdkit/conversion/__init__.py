"""Conversion: the same weights under other names, in another container, with what says how to run them."""
