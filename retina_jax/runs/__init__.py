"""The work of each command from end to end, without flags or console."""
