"""The parts of `sdkit.jobs.reproduce`: inputs are found by content, the recipe is followed, the bytes are compared."""
