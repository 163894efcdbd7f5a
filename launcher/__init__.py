"""disttorch-run: starts the ranks of one job through MPI's own mpiexec and watches over them.

    cli.py        arguments and their checks
    plan.py       what to start: mpiexec, environment, thread budget
    supervise.py  the event loop: processes, signals, who failed first
    output.py     many ranks' output on one terminal
    report.py     the last words: traceback and one-sentence summary
    child.py      runs in each rank's place: watches the rank, which is its child

The standard library only: a broken NumPy or MPI must not keep the launcher from saying so.
"""
