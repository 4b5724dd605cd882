"""Background tasks, deadlines, circuit breakers, and single-flight."""
