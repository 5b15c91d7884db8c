"""Single-particle EM images without their in-plane pose: a spatial-VAE for RELION and cryoSPARC stacks.

The package is a house with one room per purpose; imports point downwards only:

    config, geometry, ctf, imaging  <  io  <  particles, model  <  simulate, run  <  train, infer
    <  export, analysis  <  workflow  <  cli, napari_plugin

``emsvae --help`` answers without torch or pandas, so nothing is imported here.
"""

__version__ = "0.1.0"
