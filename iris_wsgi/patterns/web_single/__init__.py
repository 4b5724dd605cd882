"""Pattern: web single."""
