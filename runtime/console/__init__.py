"""The command line and the person before it: options, progress, tables."""
