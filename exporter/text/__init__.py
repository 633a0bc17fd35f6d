"""A checkpoint's tokenizer and chat template, and the proof that the bundle's agree."""
