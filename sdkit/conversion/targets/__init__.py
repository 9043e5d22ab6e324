"""What checkpoints are written as: one target, one file."""
