"""Conversations: messages, the template that makes text of them, and a cache that goes with them."""
