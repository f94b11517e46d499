"""What drafts are worth, by replaying them on text that the model has decoded."""
