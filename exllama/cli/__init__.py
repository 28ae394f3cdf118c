"""What the command lines share and do: flags, console, chat, benchmark, doctor. Entry points only parse and call."""
