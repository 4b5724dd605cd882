"""Pattern: horizontal microservice."""
