"""gemma-run doctor: what this device has, what loads here and what fits."""
