"""From the lowered vocabulary to something that runs: implementations chosen, buffers placed."""
