"""Another system, for comparisons."""
