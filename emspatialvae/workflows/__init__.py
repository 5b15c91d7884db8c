"""What each command does, one module per command, with its sentences for the user."""
