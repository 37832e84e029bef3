"""Optional kernel libraries: the only importers of each, imported when first used. Everything works without them."""
