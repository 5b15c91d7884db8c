"""How close estimates come to a known truth."""
