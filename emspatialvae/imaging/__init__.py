"""Pure functions on stacks of images, ``float32 [n, box, box]``, with the centre at ``box // 2``."""
