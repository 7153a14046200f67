"""kmesh-daemon: the dual-engine launcher."""
