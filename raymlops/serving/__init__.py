"""Serving: desired deployments as one Serve config, sent and read back, and the code that answers requests."""
