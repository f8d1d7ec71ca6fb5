"""Alembic's scripts, run by ``raymlops.state.migrate``."""
