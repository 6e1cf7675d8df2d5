"""The memory bank of healthy patches: which are kept, how the nearest one is found, for every layer set at once."""
