"""What each model family looks like: names, blocks and detection, from headers alone. No torch."""
