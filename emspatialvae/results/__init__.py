"""A run folder, what is in it, and how it goes back into particle files."""
