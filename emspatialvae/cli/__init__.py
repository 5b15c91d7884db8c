"""The command line: one module of flags per command."""
