"""Feature maps of an encoder's layers on one grid, and how distances in them become score maps."""
