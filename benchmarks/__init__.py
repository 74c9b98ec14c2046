"""asv suites; docs/benchmarks.md says how to run them."""
