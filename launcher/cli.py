"""disttorch-run: its arguments are checked and turned into a job."""

import importlib.machinery
import os
import shlex
import shutil
import sys

from launcher.elastic import Restarts
from launcher.options import make_parser
from launcher.plan import SECRET_VARIABLE, UsageError, check_slots, make_plan, ranks_from
from launcher.torchrun import (
    check_torchrun,
    endpoint,
    number_of_nodes,
    seconds,
    time_to_join,
    whole_number,
)

DEFAULT_PORT = 29500  # torchrun's
SHORTEST_SECRET = 16  # characters


def main(argv=None):
    """Runs a job; returns the exit status. `argv` defaults to sys.argv[1:]."""
    try:
        return Restarts(make_parser().parse_args(argv), job_from).run()
    except UsageError as error:
        print(f"disttorch-run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # between two starts, when there is no rank to end
        return 130


def job_from(options):
    """The Job that `options` (of make_parser) describe; raises UsageError."""
    from launcher.output import Output
    from launcher.supervise import Job

    check_torchrun(options)
    set_tune(options)
    nodes = nodes_from(options)
    local_size = ranks_from(options.nproc_per_node or ("cpu" if options.tune else "1"))
    check_slots(local_size, options.oversubscribe)
    mode = check_target(options)
    timeout = seconds(options.timeout, "--timeout")
    grace = seconds(options.grace, "--grace")
    flight_dir = flight_folder(options.flight_dir)
    address, port = endpoint(options)
    plan = make_plan(
        local_size,
        mode,
        options.script,
        options.args,
        via=options.via,
        mpiexec=options.mpiexec,
        mpiexec_args=split_arguments(options.mpiexec_args),
        threads=whole_number(options.threads_per_rank, "--threads-per-rank"),
        extra_env=variables(options.env),
        master_addr=address or "127.0.0.1",
        master_port=nodes["port"] - 1 if nodes else whole_number(port, "--master-port", 65535),
        node=nodes["node"] if nodes else 0,
        nnodes=nodes["nnodes"] if nodes else 1,
        secret=secret_from(options),
        run_id=options.rdzv_id,
        role=options.role,
        flight_dir=flight_dir,
        restarts=options.restarts,
    )
    ranks = range(plan.first, plan.first + local_size)
    shown = shown_ranks(options.local_ranks_filter, ranks)
    try:
        output = Output(
            plan.size, options.log_dir, shown, prefix=not options.no_prefix, ranks=ranks
        )
    except OSError as error:
        raise UsageError(
            f"--log-dir {options.log_dir}: cannot write there: {error.strerror}"
        ) from None
    return Job(
        plan, output, timeout=timeout, grace=grace, verbose=options.verbose,
        nodes=tie(nodes, local_size), flight_dir=flight_dir,
    )


# -- several nodes --


def nodes_from(options):
    """NodeSettings' fields of a job over several nodes, but for local_size; None for one node."""
    nnodes = number_of_nodes(options.nnodes)
    if options.via not in ("auto", "mpi", "spawn"):
        raise UsageError(f"--via {options.via}: give mpi, spawn or auto")
    if options.via == "spawn" and (options.mpiexec or options.mpiexec_args):
        raise UsageError("--via spawn uses no mpiexec; leave out --mpiexec and --mpiexec-args")
    if nnodes == 1:
        if options.node_rank not in (None, "0"):
            raise UsageError(f"--node-rank {options.node_rank} of 1 node; give --nnodes N as well")
        return None
    if options.via == "mpi" or options.mpiexec or options.mpiexec_args:
        raise UsageError(
            f"--nnodes {options.nnodes} through MPI: this launcher uses mpiexec on one node only; "
            f"use --via spawn, or start the script itself: mpirun -hosts a,b -n N python "
            f"{options.script}"
        )
    if options.standalone:
        raise UsageError(f"--standalone means one node; leave it out, or --nnodes {options.nnodes}")
    node = options.node_rank
    if node is None or not (node.isascii() and node.isdigit() and int(node) < nnodes):
        raise UsageError(
            f"--nnodes {nnodes} needs --node-rank R, this node's number from 0 to {nnodes - 1}"
            + (f", not {node}" if node is not None else "")
        )
    address, port = endpoint(options)
    if not address:
        raise UsageError(f"--nnodes {nnodes} needs --master-addr HOST, an address of node 0")
    secret = secret_from(options)
    if not secret:
        raise UsageError(
            f"--nnodes {nnodes} needs the job's secret, the same on all nodes, in the environment "
            f"as {SECRET_VARIABLE} or by --secret-file FILE; make one with: openssl rand -hex 32"
        )
    return {
        "node": int(node),
        "nnodes": nnodes,
        "address": address,
        "port": (whole_number(port, "--master-port", 65534) or DEFAULT_PORT) + 1,
        "secret": secret.encode(),
        "local_address": options.local_addr or "",
        "start_timeout": time_to_join(options),
        "heartbeat_timeout": seconds(options.heartbeat_timeout, "--heartbeat-timeout"),
    }


def tie(nodes, local_size):
    """The Head or Member for `nodes` (of nodes_from), or None for one node."""
    if nodes is None:
        return None
    from launcher.head import Head
    from launcher.member import Member
    from launcher.nodes import NodeSettings

    settings = NodeSettings(local_size=local_size, **nodes)
    return Head(settings) if settings.node == 0 else Member(settings)


def secret_from(options):
    """The job's secret, where the user gave one; raises UsageError for one easily guessed."""
    secret, source = os.environ.get(SECRET_VARIABLE), SECRET_VARIABLE
    if options.secret_file:
        source = f"--secret-file {options.secret_file}"
        try:
            with open(options.secret_file, encoding="utf-8") as file:
                secret = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{source}: cannot be read: {error}") from None
    if secret is not None and len(secret) < SHORTEST_SECRET:
        raise UsageError(
            f"{source} holds {len(secret)} characters, at least {SHORTEST_SECRET} are needed; make "
            "one with: openssl rand -hex 32"
        )
    return secret


# -- checks --


def set_tune(options):
    """Turns --tune into the module that it stands for."""
    if not options.tune:
        if options.out is not None:
            raise UsageError("--out is where --tune writes its table; give --tune as well")
        return
    if options.script is not None or options.module or options.no_python:
        raise UsageError("--tune measures the collectives; give no script, --module or --no-python")
    options.module, options.script = True, "collectives.tune"
    options.args = ["--out", options.out] if options.out is not None else []


def flight_folder(name):
    """The absolute path of --flight-dir, which is made; None without."""
    if name is None:
        return None
    try:
        os.makedirs(name, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--flight-dir {name}: cannot be made: {error.strerror}") from None
    return os.path.abspath(name)


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


def variables(settings):
    for setting in settings:
        if not setting.partition("=")[0] or "=" not in setting:
            raise UsageError(f"--env {setting}: give NAME=VALUE")
        if setting.startswith(f"{SECRET_VARIABLE}="):
            raise UsageError(
                f"--env {SECRET_VARIABLE}=... would show the secret to all who list processes; set it "
                "in the environment or use --secret-file"
            )
    return dict(setting.split("=", 1) for setting in settings)


def split_arguments(text):
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--mpiexec-args {text}: {error}") from None


def shown_ranks(text, ranks):
    """Those of `ranks`, a node's, whose local numbers `text` lists; all without it."""
    if text is None:
        return set(ranks)
    parts = [part.strip() for part in text.split(",")]
    if not all(p.isascii() and p.isdigit() and int(p) < len(ranks) for p in parts):
        raise UsageError(
            f"--local-ranks-filter {text}: give ranks from 0 to {len(ranks) - 1}, as in 0,1"
        )
    return {ranks[int(part)] for part in parts}


if __name__ == "__main__":
    sys.exit(main())
