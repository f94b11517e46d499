"""What architectures of GGUF files say beside the usual, in the words of config.json."""
