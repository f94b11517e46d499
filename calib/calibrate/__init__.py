"""Calibration of a model on text, to a predictor directory: the request, the run of its stages."""
