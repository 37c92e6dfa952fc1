"""One verb = one file; each returns a result, the command line only prints it."""
