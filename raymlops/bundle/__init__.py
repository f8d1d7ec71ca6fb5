"""Bundles: the files of a trained model that a replica needs, vouched for by one digest."""
