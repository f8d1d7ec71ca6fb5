"""How good answers were once their labels are known, and whether that is worse than it was. Pure."""
