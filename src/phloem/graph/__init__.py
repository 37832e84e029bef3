"""The model graph: what one step computes, as a traced graph that named passes rewrite."""
