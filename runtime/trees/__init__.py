"""Draft trees: which guesses one pass verifies, and what its rows see; pure numpy."""
