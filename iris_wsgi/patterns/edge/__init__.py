"""Pattern: edge AI."""
