"""What a command does to a run, from end to end, without flags or a console."""
