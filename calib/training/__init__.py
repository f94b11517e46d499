"""Training of draft heads and of the path correction on a frozen model."""
