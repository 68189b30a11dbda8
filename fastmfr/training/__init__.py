"""Training: a run and its stages in order, the two loops, their states, rates and records."""
