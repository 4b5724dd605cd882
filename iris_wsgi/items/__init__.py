"""Items: rows by id in a database, with a cache in front of it."""
