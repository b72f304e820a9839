"""Conversations with an agent, from Python."""
