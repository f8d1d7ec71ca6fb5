"""The protocols in which a model is asked: each turns bytes into columns and columns into bytes."""
