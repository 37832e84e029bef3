"""The op vocabulary: every op is a contract with a plain-torch reference."""
