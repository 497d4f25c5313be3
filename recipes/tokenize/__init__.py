"""Tokenize the documents of a configuration once, into Parquet that `tokens` of a source reads."""
