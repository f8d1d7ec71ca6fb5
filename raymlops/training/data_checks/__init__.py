"""What is checked of a recipe's data before a run or a sweep."""
