"""`viva serve`: a bank in the browser."""
