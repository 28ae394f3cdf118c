"""Speculation: tokens are guessed cheaply and verified together; what is drawn stays the same bit for bit."""
