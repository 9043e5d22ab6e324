"""One function per verb: what the Python API and the command line both call."""
