"""A bundle on disk: its format, the graphs it declares, its records."""
