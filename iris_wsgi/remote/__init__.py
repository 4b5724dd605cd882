"""Models that another server runs, asked over v2: by prep, and by the gateway."""
