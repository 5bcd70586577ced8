"""The command line: files in, an output folder out."""
