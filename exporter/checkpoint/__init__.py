"""Checkpoints: config, lazily mapped weights, adapters and packed integers, all untrusted."""
