"""The scatter of all particles."""
