"""Learning an encoder from healthy scans: views, contrast, the loop, and what it has been taught to ignore."""
