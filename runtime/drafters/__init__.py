"""Where draft trees come from: one contract, one file a method."""
