"""Make a bundle: check its place, fill it, and publish it in one step."""
