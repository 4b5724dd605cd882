"""Pattern: batch."""
