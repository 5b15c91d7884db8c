"""Trainings that others start: in a process of their own, as a job of RELION's."""
