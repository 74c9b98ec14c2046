"""asv suites: ``asv run --python=same --quick`` tries them, docs/benchmarks.md says how to measure."""
