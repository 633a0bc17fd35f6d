"""The bundle folder: may its place be taken, what goes in, and the one step that publishes it."""
