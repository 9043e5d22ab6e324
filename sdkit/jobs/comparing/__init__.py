"""The parts of `sdkit.jobs.compare`: who is compared, on what, and how each is trained and measured."""
