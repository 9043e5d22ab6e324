"""What measures speed and memory. See README.md."""
