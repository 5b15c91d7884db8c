"""The Latent explorer: a run to look at and to select from."""
