"""Particle files as they are on disk: MRC stacks, STAR and .cs tables, and how results replace them safely."""
