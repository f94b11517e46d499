"""What lies in a bundle on disk: its format, the graphs it declares, its records."""
