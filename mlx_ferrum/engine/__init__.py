"""Many texts at once: requests come and go, and each step extends all that run."""
