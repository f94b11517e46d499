"""Folders that firp writes: bundles, and the predictor folders that they take up."""
