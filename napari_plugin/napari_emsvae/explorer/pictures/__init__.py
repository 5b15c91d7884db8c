"""The pictures of particles and of the model, and where they lie on the canvas."""
