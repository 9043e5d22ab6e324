"""What trains: each owns its parameters alone, and puts them into a model while a context lasts."""
