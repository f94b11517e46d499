"""The commands calibrate, profile and verify: options in, tables out."""
