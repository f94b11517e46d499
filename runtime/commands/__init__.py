"""The commands generate, tune, bench and inspect: options in, text or JSON out."""
