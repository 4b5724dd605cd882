"""Pattern: synchronous."""
