"""Who runs next, on which pages, with how many tokens: a deterministic state machine over integers. No torch."""
