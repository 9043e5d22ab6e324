"""Training: one loop, composed of what trains, what is minimised, and randomness that is a function of the step."""
