"""Back up what a machine knows, while everything runs, and restore it on an empty one."""
