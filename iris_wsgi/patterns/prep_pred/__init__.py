"""Pattern: prep-pred."""
