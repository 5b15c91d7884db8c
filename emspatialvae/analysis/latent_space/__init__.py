"""Ways, maps and axes through the latent space; pure functions of z."""
