"""One folder per runtime; none knows another."""
