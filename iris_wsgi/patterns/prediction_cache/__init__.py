"""Pattern: prediction cache."""
