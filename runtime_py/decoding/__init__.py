"""The speculative loop: draft, verify, accept. Plain decoding is the case of no drafts."""
