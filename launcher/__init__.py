"""disttorch-run: starts the ranks of one job and watches over them.

    options.py    arguments and help;  torchrun.py: torchrun's spellings
    cli.py        their checks, and the job they describe
    plan.py       what to start: mpiexec or the ranks themselves, environment, thread budget
    starters.py   the processes that are started
    supervise.py  one job from start to end: who failed, and the end of all others
    loop.py       its event loop: descriptors, timers, signals
    links.py      sockets to the ranks' watchers
    output.py     many ranks' output on one terminal
    elastic.py    starting it again, perhaps with fewer ranks
    verdict.py    whose fault it was;  report.py: in words
    nodes.py      a job over several nodes: its launchers, head.py on node 0 and member.py elsewhere
    channel.py    what they say to each other, and how strangers are kept out
    child.py      runs in each rank's place: watches the rank, which is its child

The standard library only: a broken NumPy or MPI must not keep the launcher from saying so.
"""
