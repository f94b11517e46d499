"""The loop that drafts, verifies, accepts and commits, and the text it becomes."""
