"""The chat REPL: a conversation, its commands, and how an answer reaches a terminal."""
