"""What an export will take: time, memory and disk, before the work begins."""
