"""Shared by all sources: folders, tables, label codes, published splits, figures, run-length masks."""
