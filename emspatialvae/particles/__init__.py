"""Particle files: what is read from them, and which particle or column somebody means."""
