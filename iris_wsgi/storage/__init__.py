"""SQLite, Redis, PostgreSQL, files, and in-memory caches."""
