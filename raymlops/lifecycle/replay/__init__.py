"""Weeks of real flights through a real endpoint, on the clock of a replay: the demo of a watched model."""
