"""The spatial-VAE: decoder, likelihood, encoder, posterior, and the model that composes them.

Nothing in here reads files or knows what a particle stack is: tensors in, tensors out.
"""
