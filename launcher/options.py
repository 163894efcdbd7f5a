"""disttorch-run's arguments and its help."""

import argparse

from launcher.plan import UsageError

EXAMPLES = """\
examples, one node:
  disttorch-run --nproc-per-node 2 train.py --lr 1e-3     two ranks of a script
  disttorch-run --nproc-per-node gpu -m mypackage.train   one rank per GPU, of a module
  disttorch-run -n 4 --oversubscribe test.py              more ranks than CPU cores
  disttorch-run -n 2 --via spawn train.py                 without MPI
  disttorch-run -n 2 --log-dir logs train.py              logs/rank0.stdout.log, ...
  disttorch-run -n 2 --flight-dir flight train.py         the last calls of every rank, on failure
  disttorch-run -n 2 --no-python ./program arg            any program
  disttorch-run -n 4 --elastic-sizes 4,2,1 train.py       after a failure, again with 2, then 1
  disttorch-run --tune -n 2 --out table.json              measure this machine's collectives

examples, two nodes (the same on both but for --node-rank; no MPI, no ssh):
  export DISTTORCH_JOB_SECRET=...      or --secret-file FILE; make one: openssl rand -hex 32
  disttorch-run --nnodes 2 --node-rank 0 --master-addr a -n 4 train.py      on host a
  disttorch-run --nnodes 2 --node-rank 1 --master-addr a -n 4 train.py      on host b

how ranks start:
  --via mpi: through MPI's mpiexec, on one node. Over several, start the script itself by mpirun or
  srun (disttorch reads its rank from them). --via spawn: by the launcher itself, on any number of
  nodes; no MPI is needed. Default: mpi for several ranks on one node where an mpiexec is found.
  On several nodes the ranks are numbered by node. Node 0's launcher listens at --master-addr on port
  --master-port + 1 until all nodes have joined; --master-port itself is the ranks' MASTER_PORT. Who
  does not know the job's secret is not let in. All start together; whatever ends the job on one node
  ends it on all, with the same sentence and exit status. On one node nothing listens.

environment of every rank:
  RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK MASTER_ADDR MASTER_PORT, and GROUP_RANK
  GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME TORCHELASTIC_RUN_ID
  TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS as torchrun sets them;
  DISTTORCH_VIA (mpi or spawn), DISTTORCH_RUN_ID, DISTTORCH_JOB_SECRET (random where not given; it is
  never shown), DISTTORCH_NODE_ADDR (this node's address for the others, on several nodes),
  DISTTORCH_FLIGHT_DIR;
  and, where you did not set them, OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS (CPU cores //
  ranks) and OMP_WAIT_POLICY=passive. CUDA_VISIBLE_DEVICES is left alone: take device LOCAL_RANK.

output:
  Each line is prefixed by its rank and never broken by another's. On a terminal, rank 0 writes to a
  terminal too, so its progress bars work; it also reads stdin. A single rank writes directly.
  Colour: only on a terminal, and as NO_COLOR and FORCE_COLOR say.

exit status:
  0 when every rank ended with 0; else that of the rank that failed first (128 + N for signal N), not
  counting ranks that failed only because another had; 1 when a node was lost or did not come; 124
  after --timeout; 130 after Ctrl-C; 2 for wrong usage. A rank that fails ends the others; its
  traceback and one sentence are the last thing printed. Ctrl-C once lets the ranks end by
  themselves for --grace seconds, twice kills them. Processes that ranks started end with them.

restarts:
  With --max-restarts or --elastic a job is stopped as ever when a rank fails, and started again: with
  as many ranks, or with those that did not fail themselves. TORCHELASTIC_RESTART_COUNT counts up; the
  script goes on from its last checkpoint. No restart follows a signal, --timeout (which counts all
  starts together), a lost node, or a rank's status 2 (wrong usage). The status is that of the last
  start, and the last lines name every failure before it.

torchrun's options are taken as they are, but for nodes that come and go.
"""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"{message}; see disttorch-run --help")


class Tune(argparse.Action):
    """--tune, after which no script need follow."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.tune = True
        for action in parser._actions:
            if action.dest in ("script", "args"):
                action.required = False


def make_parser():
    parser = Parser(
        prog="disttorch-run",
        description="Starts the ranks of a Python script, on this machine or one of several, and "
        "watches over them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="disttorch-run [options] script.py [args ...]",
    )
    add_job(Adder(parser))
    add_output(Adder(parser.add_argument_group("output and endings")))
    add_restarts(Adder(parser.add_argument_group("restarts")))
    add_mpi(Adder(parser.add_argument_group("--via mpi")))
    add_nodes(Adder(parser.add_argument_group("several nodes")))
    add_torchrun(Adder(parser.add_argument_group("torchrun's")))
    parser.set_defaults(restarts=(0, 0))  # how many there have been, and may be
    parser.add_argument("script", nargs=None, help=argparse.SUPPRESS)
    parser.add_argument("args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


class Adder:
    """Adds options to `group`, spelt with hyphens or with underscores: torchrun takes both."""

    def __init__(self, group):
        self.group = group

    def __call__(self, name, *others, **settings):
        names = [*others, name]
        if "-" in name[2:]:
            names.append("--" + name[2:].replace("-", "_"))
        self.group.add_argument(*names, **settings)


def add_job(add):
    add("--nproc-per-node", "-n", "-np", metavar="N",
        help="ranks to start here: a number, gpu (one per GPU), cpu (one per core) or auto (gpu where "
             "there is one, else cpu); default 1, for --tune cpu")
    add("--via", default="auto", metavar="WAY", help="how ranks start: mpi, spawn or auto; see below")
    add("--module", "-m", action="store_true", help="the script is a module name, as in python -m")
    add("--no-python", action="store_true", help="the script is a program to run as it is")
    add("--oversubscribe", action="store_true", help="allow more ranks than CPU cores (or GPUs)")
    add("--threads-per-rank", metavar="N", help="BLAS/OpenMP threads (default: cores // ranks)")
    add("--env", action="append", default=[], metavar="K=V", help="set a variable in every rank")
    add("--tune", action=Tune, nargs=0, default=False,
        help="instead of a script: measure the collectives here (python -m collectives.tune)")
    add("--out", metavar="PATH", help="where --tune writes its table")


def add_output(add):
    add("--log-dir", metavar="DIR", help="also append each rank's stdout and stderr to "
        "DIR/rank<R>.stdout.log and DIR/rank<R>.stderr.log, unprefixed")
    add("--local-ranks-filter", metavar="R,R", help="show only these local ranks' output")
    add("--no-prefix", action="store_true", help="show lines without their rank")
    add("--flight-dir", metavar="DIR", help="have ranks write their flight records there on failure; "
        "read them by python -m collectives.flight DIR")
    add("--timeout", metavar="SECONDS", help="end the job after this time; every rank's Python "
        "stack is printed, the status is 124")
    add("--grace", default="3", metavar="SECONDS", help="how long ranks may take to end after "
        "another failed or a signal came, before SIGKILL (default 3)")
    add("--verbose", "-v", action="store_true", help="say what is started; show mpiexec's output")


def add_restarts(add):
    add("--max-restarts", metavar="N", help="start the job again, up to N times, after a rank failed "
        "(default 0; with --elastic as often as ranks remain)")
    add("--elastic", action="store_true", help="start again with the ranks that remain")
    add("--min-ranks", metavar="M", help="--elastic, but not with fewer than M (default 1)")
    add("--elastic-sizes", metavar="N,N", help="--elastic, with the largest of these numbers that "
        "remain: such as divide the virtual shards of exact training")


def add_mpi(add):
    add("--mpiexec", metavar="PATH", help="mpiexec to use: MPICH's or Intel's Hydra, Open MPI's, "
        "or srun (default: the one beside this Python, else on PATH)")
    add("--mpiexec-args", default="", metavar="ARGS", help="more arguments for mpiexec, quoted, "
        'such as "-bind-to core"')


def add_nodes(add):
    add("--nnodes", default="1", metavar="N", help="nodes of the job (default 1)")
    add("--node-rank", metavar="R", help="which of them this is, from 0")
    add("--master-addr", metavar="HOST", help="node 0's address (default on one node: 127.0.0.1)")
    add("--master-port", metavar="PORT",
        help="MASTER_PORT (default: a free one; on several nodes 29500). The launchers use PORT + 1")
    add("--secret-file", metavar="FILE", help="holds the job's secret, at least 16 characters, the "
        "same on all nodes (default: the environment's DISTTORCH_JOB_SECRET)")
    add("--local-addr", metavar="HOST", help="this node's address (default: that of the connection "
        "to node 0)")
    add("--rdzv-timeout", metavar="SECONDS", help="how long to wait for all nodes (default 300)")
    add("--heartbeat-timeout", default="30", metavar="SECONDS",
        help="a node that is silent for so long is lost (default 30)")


def add_torchrun(add):
    add("--standalone", action="store_true", help="one node, which is the default")
    add("--rdzv-endpoint", metavar="HOST[:PORT]", help="--master-addr and --master-port in one")
    add("--rdzv-backend", default="static", metavar="NAME", help="static or c10d, which do the same")
    add("--rdzv-id", metavar="ID", help="name of the job (default: a random one)")
    add("--rdzv-conf", default="", metavar="K=V,...", help="timeout and join_timeout are taken")
    add("--role", default="default", metavar="NAME", help="ROLE_NAME of the ranks")
    add("--start-method", default="spawn", metavar="NAME", help="accepted; ranks are new processes")
    add("--monitor-interval", metavar="SECONDS", help="accepted; failures are noticed at once")
    add("--redirects", "-r", default="0", metavar="0", help="only 0: see --log-dir")
    add("--tee", "-t", default="0", metavar="N", help="accepted with --log-dir, which shows and "
        "writes both streams")
