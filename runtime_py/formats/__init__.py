"""Readers of file formats that check everything before they believe it."""
