"""One paper = one file; every file here is found by scanning and registers its methods by name."""
