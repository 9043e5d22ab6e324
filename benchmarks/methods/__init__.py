"""The four training methods, compared by measurement on the embedded base. See docs/training.md."""
