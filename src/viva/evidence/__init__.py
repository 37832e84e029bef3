"""Facts worth asking about, mined from an index."""
