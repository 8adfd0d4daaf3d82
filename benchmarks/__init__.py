"""Benchmarks: each module has `main()`, prints its figures, and says with what it compared them."""
