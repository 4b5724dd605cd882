"""Pattern: data cache."""
