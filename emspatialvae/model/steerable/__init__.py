"""The steerable model: images as sums of angular orders, poses searched."""
