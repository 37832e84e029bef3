"""`viva practice`: be asked, answer, and be graded against the rubric."""
