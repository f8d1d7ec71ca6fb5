"""Shipped recipes: ``flights``, ``digits`` and ``bytelm``. A configuration names one by import string.

Nothing of the framework imports them: they use the same public protocol as a user's own recipe.
"""
