"""What a user asks for: the sections of a configuration file and how files become a ``ProjectSpec``."""
