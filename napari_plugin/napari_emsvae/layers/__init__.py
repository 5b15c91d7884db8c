"""Particle files and run folders as napari's layers."""
