"""What lies between the program and a terminal: safe text, one-line errors, signals."""
