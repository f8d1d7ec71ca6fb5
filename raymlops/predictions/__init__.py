"""The prediction log: what was asked and answered, as append-only Parquet, and the labels that came later."""
