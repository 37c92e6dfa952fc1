"""Accuracy and answers of pruned models: one verb, one file; each returns a result, the command line only prints it."""
