"""The commands generate, chat, tune, bench and inspect: options in, text or JSON out."""
