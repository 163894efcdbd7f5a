"""disttorch-run's arguments: parsed, checked, and turned into a job."""

import argparse
import importlib.machinery
import os
import shlex
import shutil
import sys

from launcher.plan import UsageError, check_slots, make_plan, ranks_from

EXAMPLES = """\
examples:
  disttorch-run --nproc-per-node 2 train.py --lr 1e-3     two ranks of a script
  disttorch-run --nproc-per-node gpu -m mypackage.train   one rank per GPU, of a module
  disttorch-run -n 4 --oversubscribe test.py              more ranks than CPU cores
  disttorch-run -n 2 --log-dir logs train.py              logs/rank0.stdout.log, ...
  disttorch-run -n 2 --no-python ./program arg            any program

environment of every rank:
  RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE NODE_RANK MASTER_ADDR MASTER_PORT, and, where you did
  not set them, OMP_NUM_THREADS OPENBLAS_NUM_THREADS MKL_NUM_THREADS (CPU cores // ranks) and
  OMP_WAIT_POLICY=passive. CUDA_VISIBLE_DEVICES is left alone: take device LOCAL_RANK.

output:
  Each line is prefixed by its rank and never broken by another's. On a terminal, rank 0 writes to a
  terminal too, so its progress bars work; it also reads stdin. A single rank writes directly.
  Colour: only on a terminal, and as NO_COLOR and FORCE_COLOR say.

exit status:
  0 when every rank ended with 0; else that of the rank that failed first (128 + N for signal N);
  124 after --timeout; 130 after Ctrl-C; 2 for wrong usage. A rank that fails ends the others; its
  traceback and one sentence are the last thing printed. Ctrl-C once lets the ranks end by
  themselves for --grace seconds, twice kills them. Processes that ranks started end with them.

Several nodes: start the script itself with mpirun or srun (disttorch reads its rank from them).
"""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UsageError(f"{message}; see disttorch-run --help")


def make_parser():
    parser = Parser(
        prog="disttorch-run",
        description="Starts N ranks of a Python script on this machine through MPI's mpiexec.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        usage="disttorch-run [options] script.py [args ...]",
    )

    def add(name, *others, **settings):
        names = [*others, name]
        if "-" in name[2:]:
            names.append("--" + name[2:].replace("-", "_"))  # torchrun takes both spellings
        parser.add_argument(*names, **settings)

    add("--nproc-per-node", "-n", "-np", default="1", metavar="N",
        help="ranks to start: a number, gpu (one per GPU), cpu (one per core) or auto (gpu where "
             "there is one, else cpu); default 1, which needs no MPI")
    add("--module", "-m", action="store_true", help="the script is a module name, as in python -m")
    add("--no-python", action="store_true", help="the script is a program to run as it is")
    add("--oversubscribe", action="store_true", help="allow more ranks than CPU cores (or GPUs)")
    add("--threads-per-rank", metavar="N", help="BLAS/OpenMP threads (default: cores // ranks)")
    add("--env", action="append", default=[], metavar="K=V", help="set a variable in every rank")
    add("--log-dir", metavar="DIR", help="also append each rank's stdout and stderr to "
        "DIR/rank<R>.stdout.log and DIR/rank<R>.stderr.log, unprefixed")
    add("--local-ranks-filter", metavar="R,R", help="show only these ranks' output")
    add("--no-prefix", action="store_true", help="show lines without their rank")
    add("--timeout", metavar="SECONDS", help="end the job after this time; every rank's Python "
        "stack is printed, the status is 124")
    add("--grace", default="3", metavar="SECONDS", help="how long ranks may take to end after "
        "another failed or a signal came, before SIGKILL (default 3)")
    add("--mpiexec", metavar="PATH", help="mpiexec to use: MPICH's or Intel's Hydra, Open MPI's, "
        "or srun (default: the one beside this Python, else on PATH)")
    add("--mpiexec-args", default="", metavar="ARGS", help="more arguments for mpiexec, quoted, "
        'such as "-bind-to core"')
    add("--master-addr", default="127.0.0.1", metavar="HOST", help="MASTER_ADDR of the ranks")
    add("--master-port", metavar="PORT", help="MASTER_PORT (default: a free one)")
    add("--nnodes", default="1", metavar="1", help="only 1 is supported; see below")
    add("--standalone", action="store_true", help="accepted: every job here is single-node")
    add("--verbose", "-v", action="store_true", help="say what is started; show mpiexec's output")
    parser.add_argument("script", help=argparse.SUPPRESS)
    parser.add_argument("args", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv=None):
    """Runs a job; returns the exit status. `argv` defaults to sys.argv[1:]."""
    try:
        job = job_from(make_parser().parse_args(argv))
    except UsageError as error:
        print(f"disttorch-run: {error}", file=sys.stderr)
        return 2
    return job.run()


def job_from(options):
    """The Job that `options` (of make_parser) describe; raises UsageError."""
    from launcher.output import Output
    from launcher.supervise import Job

    if options.nnodes not in ("1", "1:1"):
        raise UsageError(
            f"--nnodes {options.nnodes}: this launcher starts one node's ranks; over several nodes "
            f"start the script itself: mpirun -hosts a,b -n N python {options.script}"
        )
    size = ranks_from(options.nproc_per_node)
    check_slots(size, options.oversubscribe)
    mode = check_target(options)
    timeout = seconds(options.timeout, "--timeout")
    grace = seconds(options.grace, "--grace")
    plan = make_plan(
        size,
        mode,
        options.script,
        options.args,
        mpiexec=options.mpiexec,
        mpiexec_args=split_arguments(options.mpiexec_args),
        threads=whole_number(options.threads_per_rank, "--threads-per-rank"),
        extra_env=variables(options.env),
        master_addr=options.master_addr,
        master_port=whole_number(options.master_port, "--master-port", 65535),
    )
    shown = shown_ranks(options.local_ranks_filter, size)
    try:
        output = Output(size, options.log_dir, shown, prefix=not options.no_prefix)
    except OSError as error:
        raise UsageError(
            f"--log-dir {options.log_dir}: cannot write there: {error.strerror}"
        ) from None
    return Job(plan, output, timeout=timeout, grace=grace, verbose=options.verbose)


def check_target(options):
    """ "script", "module" or "program"; raises UsageError when it plainly cannot be run."""
    name = options.script
    if options.no_python and options.module:
        raise UsageError("--module and --no-python exclude each other")
    if options.no_python:
        if shutil.which(name) is None:
            raise UsageError(f"{name}: no such program")
        return "program"
    if options.module:
        top = name.partition(".")[0]
        if importlib.machinery.PathFinder.find_spec(top, [os.getcwd(), *sys.path]) is None:
            raise UsageError(f"-m {name}: no module named {top}")
        return "module"
    if os.path.isdir(name):
        raise UsageError(f"{name} is a directory; give a Python script")
    if not os.path.exists(name):
        raise UsageError(f"{name}: no such script")
    if not os.access(name, os.R_OK):
        raise UsageError(f"{name}: no permission to read it")
    return "script"


def seconds(text, name):
    try:
        value = float(text) if text is not None else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{name} {text}: give a positive number of seconds")
    return value


def whole_number(text, name, largest=1 << 16):
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= largest):
        raise UsageError(f"{name} {text}: give a whole number from 1 to {largest}")
    return int(text)


def variables(settings):
    for setting in settings:
        if not setting.partition("=")[0] or "=" not in setting:
            raise UsageError(f"--env {setting}: give NAME=VALUE")
    return dict(setting.split("=", 1) for setting in settings)


def split_arguments(text):
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--mpiexec-args {text}: {error}") from None


def shown_ranks(text, size):
    if text is None:
        return set(range(size))
    parts = [part.strip() for part in text.split(",")]
    if not all(p.isascii() and p.isdigit() and int(p) < size for p in parts):
        raise UsageError(f"--local-ranks-filter {text}: give ranks from 0 to {size - 1}, as in 0,1")
    return {int(part) for part in parts}


if __name__ == "__main__":
    sys.exit(main())
