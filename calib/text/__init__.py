"""Text to learn from: documents, and what the model writes itself."""
