"""A checkpoint's tokenizer and chat template, and the proof that the bundle's give equal tokens."""
