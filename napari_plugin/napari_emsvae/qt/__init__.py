"""Small helpers round Qt: controls, dialogs, work in the background, colours."""
