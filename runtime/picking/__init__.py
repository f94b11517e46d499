"""Picks: from a row of logits and the tokens before it to one token, and how likely it was."""
