"""Texts of records: sections, sentences, prompts, text views, tokenizers."""
