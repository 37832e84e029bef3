"""Which page belongs to whom: pages, leases, the radix prefix index, eviction, invariants. Integers only, no torch."""
