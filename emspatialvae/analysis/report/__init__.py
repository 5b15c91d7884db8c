"""The figures of a run, and the report as a page to read."""
