"""How many tokens to draft, from what calls cost and how many drafts are accepted."""
