"""Run directories: how they are written, locked, listed and read, and the jobs that write them."""
