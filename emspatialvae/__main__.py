"""``python -m emspatialvae`` is ``emsvae``."""

import sys

from emspatialvae.cli import main

sys.exit(main())
