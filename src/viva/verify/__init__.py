"""Every claim of a bank against the pinned sources."""
