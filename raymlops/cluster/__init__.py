"""Ray clusters: the one that ``raymlops up`` starts, the one we join, and what each can hold.

Owns processes, ports, tokens and resources. Knows nothing of runs, models or deployments.
"""
