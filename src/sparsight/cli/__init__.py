"""The command line: one file per verb, which parses, calls a tool and prints."""
