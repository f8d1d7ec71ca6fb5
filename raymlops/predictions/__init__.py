"""The prediction log: requests and answers as append-only Parquet, and the labels that arrive later."""
