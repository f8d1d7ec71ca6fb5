"""Model versions: registered bundles, their aliases and lineage, and the gate between them."""
