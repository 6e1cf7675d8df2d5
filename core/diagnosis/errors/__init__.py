"""Which voxels are wrong, of what kind, and what each kind costs."""
