"""From raw images to what the model sees: what is found out about a stack before anything is learned."""
