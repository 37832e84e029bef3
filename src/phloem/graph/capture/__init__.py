"""Programs captured once and run every step: static inputs, static buffers, one call."""
