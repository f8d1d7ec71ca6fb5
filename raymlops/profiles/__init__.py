"""Profiles: counts of columns on bins of a reference, which add up exactly. Pure."""
