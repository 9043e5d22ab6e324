"""The training methods: one file each, which is data."""
