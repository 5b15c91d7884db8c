"""Particles put into classes, and averages of the raw images of each."""
