"""A bank for its readers: Markdown, one HTML page, Anki, JSON."""
