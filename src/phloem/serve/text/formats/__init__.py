"""Tool-call and reasoning formats: one declarative spec each; the constraint, the parser and the renderer read it."""
