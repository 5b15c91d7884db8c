"""Stacks whose truth is known, and how well anybody could find it: phantoms, microscope, Cramer-Rao bounds, the Bayes oracle."""
