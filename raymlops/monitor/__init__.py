"""What the model saw and said: profiles to compare with later, and the quality of answers."""
