"""How good a live model's answers are, once their labels are known."""
