"""Matplotlib figures of arrays; nothing here reads or trains."""
