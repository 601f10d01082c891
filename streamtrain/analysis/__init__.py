"""What a table has learned, computed from the epoch log alone: files are read, nothing is written, nobody is asked."""
