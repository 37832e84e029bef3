"""Model families as equations, and the catalog that recognises them in a checkpoint."""
