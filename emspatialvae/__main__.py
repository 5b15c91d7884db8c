"""``python -m emspatialvae`` is ``emsvae``."""

import sys

from emspatialvae.cli.main import main

sys.exit(main())
