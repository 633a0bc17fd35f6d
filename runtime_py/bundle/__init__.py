"""A bundle's parts: manifest, reference, tokenizer and chat template, all untrusted."""
