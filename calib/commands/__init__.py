"""The commands calibrate, profile and verify, and those that join all houses, export and demo."""
