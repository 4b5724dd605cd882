"""Background tasks, circuit breakers, and single-flight."""
