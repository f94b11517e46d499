"""Tools for commands: options made from dataclasses, progress, tables, Ctrl-C."""
