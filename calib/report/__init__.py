"""What a calibration found, as numbers, pictures and a page."""
