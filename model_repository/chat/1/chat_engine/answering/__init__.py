"""The answer of one request, whatever computes it: what it must follow, and what its caller hears."""
