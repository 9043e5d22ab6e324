"""The one internal form of everything trained: artifacts of targets and deltas, and their algebra."""
