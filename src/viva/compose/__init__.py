"""A bank from a source: what the index knows is written down, what it does not know a model says, under a grammar."""
