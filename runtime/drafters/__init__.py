"""Sources of draft trees: one contract, one file a method."""
