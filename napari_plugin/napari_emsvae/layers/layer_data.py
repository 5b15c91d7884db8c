"""What napari takes for a layer: its data, its settings, its kind."""

from typing import Any

LayerData = tuple[Any, dict[str, Any], str]
