"""What is written: bundles, and the predictor folders that they take up."""
