"""Sections about where a project runs beside Ray itself."""
