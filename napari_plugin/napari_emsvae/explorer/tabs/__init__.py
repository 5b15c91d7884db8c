"""The pages below the scatter."""
