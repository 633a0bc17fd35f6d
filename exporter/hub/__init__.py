"""List and download checkpoints from a model hub, and verify their checksums."""
