"""The event loop, its connections, and the supervisor of worker processes."""
