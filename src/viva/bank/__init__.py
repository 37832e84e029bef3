"""The bank as data: schema, loading, citations."""
