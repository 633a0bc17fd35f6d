"""This machine: its processor and memory, its caches, its processes."""
