"""What is watched of the traffic of live models."""
