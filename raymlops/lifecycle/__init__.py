"""What happens to a model from its training to its being live: each verb a function, the doors are thin over them."""
