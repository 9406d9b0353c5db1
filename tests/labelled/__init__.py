"""A plug-in of a user: a term that reads a label of the data."""
