"""Pattern: sync-async."""
