"""Checkpoints from a model hub: listed, downloaded, compared with the hub's checksums."""
