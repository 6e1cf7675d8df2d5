"""Why Dice is low, and what would raise it."""
