"""Device tensors behind the page ids of the ledger."""
