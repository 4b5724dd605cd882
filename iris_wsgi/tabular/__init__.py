"""Row formats: CSV, JSON Lines, and Parquet."""
