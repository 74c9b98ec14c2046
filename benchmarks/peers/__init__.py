"""diced beside other stores, in one run, on the same data: ``python -m benchmarks.peers --help``.

adapters/   one module per library behind one interface (`adapters.base`)
ops         what is measured, each operation a row
worker      one process per peer, told through a pipe what to do next
parallel    an operation's own processes and threads
run         the rounds
report      medians, ratios, tables, JSON; `plot` draws them
suite       the two bulk ratios for asv
"""
