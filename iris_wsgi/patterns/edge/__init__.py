"""The model on a device: bundles of it, how they get there, and answers without a server."""
