"""A connected Android device."""
