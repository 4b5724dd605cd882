"""Where caches of several machines meet."""
