"""How small and how faint a lesion may be to be found: planted lesions, and what was detected of them."""
