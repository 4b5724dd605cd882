"""Pattern: asynchronous."""
