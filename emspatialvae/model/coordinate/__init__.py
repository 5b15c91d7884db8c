"""The coordinate model: a network from coordinates to brightness, as in Bepler et al. 2019."""
