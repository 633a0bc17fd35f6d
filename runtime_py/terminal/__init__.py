"""Between the programs and a terminal: safe text, one-line errors, signals."""
