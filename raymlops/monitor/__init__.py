"""Reference profiles of columns, and the quality of answers."""
