"""A project on Kubernetes: what a specification comes to as manifests, and how the cluster's API server is asked."""
