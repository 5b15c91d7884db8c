"""Single-particle EM images without their in-plane pose: a spatial-VAE for RELION and cryoSPARC stacks.

Imports point to lower folders only (`tests/test_house.py` has the list):

    imaging  <  io, config  <  particles, model, simulation  <  preprocess  <  results
    <  training, inference, jobs  <  analysis  <  workflows  <  cli

``emsvae VERB`` is ``cli/VERB.py`` (its flags) and ``workflows/VERB.py`` (its work).

``emsvae --help`` answers without torch or pandas, so nothing is imported here.
"""

__version__ = "0.1.0"
