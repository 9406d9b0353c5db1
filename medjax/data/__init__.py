"""Data: sources build data sets of records; a run reads them as a stream of batches."""
