"""The kinds of weight change, one file each, all tile by tile."""
