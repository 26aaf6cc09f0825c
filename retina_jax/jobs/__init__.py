"""One file per command: parses flags, calls `runs` and prints."""
