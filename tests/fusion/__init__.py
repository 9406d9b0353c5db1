"""Plug-ins of a user: a tower over image and text, a term that finds matching pairs, and a term for masked words."""
