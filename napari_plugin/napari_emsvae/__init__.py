"""The napari plugin of emspatialvae: particle stacks and run folders as layers.

napari imports this package for every start, so nothing heavy is imported here: neither Qt nor torch.
"""
