"""What to start: through mpiexec or by ourselves, with which arguments and environment."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

CHILD = str(Path(__file__).with_name("child.py"))
# Set by an MPI for its own ranks. Seen here, they belong to a job around us: ours would take them
# for its own rank.
RANK_PREFIXES = ("PMI_", "PMIX_RANK", "PMIX_NAMESPACE", "PMIX_SERVER", "MPI_LOCAL", "HYDI_",
                 "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_SIZE")
SECRET_VARIABLE = "DISTTORCH_JOB_SECRET"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class UsageError(Exception):
    """One sentence for the user; no traceback."""


@dataclass
class Plan:
    """A job ready to start: `argv` in environment `env` is child.py, or mpiexec that starts it.

    `size` ranks in all; here those from `first` on, `local_size` of them, on node `node`.
    """

    size: int
    argv: list[str]
    env: dict[str, str]
    mode: str  # "script", "module" or "program"
    via: str  # "mpi" or "spawn"
    mpi: str = ""  # "", "hydra", "openmpi", "slurm" or "unknown"
    node: int = 0
    nnodes: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def local_size(self):
        return self.size // self.nnodes

    @property
    def first(self):
        return self.node * self.local_size


def make_plan(
    local_size, mode, target, arguments, *, via="auto", mpiexec=None, mpiexec_args=(), threads=None,
    extra_env=None, master_addr="127.0.0.1", master_port=None, node=0, nnodes=1, secret=None,
    run_id=None, role="default", flight_dir=None, restarts=(0, 0),
):
    """The Plan of a job of `local_size` ranks on this machine, one of `nnodes` such.

    `via`: "mpi" starts them through mpiexec; "spawn" by ourselves, and they need no MPI; "auto" is
    mpi for several ranks on one node where an mpiexec is found or asked for. `threads` is the thread
    budget of each rank (default: CPU cores // ranks), `extra_env` goes to every rank. `secret` lets
    the ranks know each other (default: a random one). `restarts`: how many there have been, and may be.

    Raises UsageError where `via` is "mpi" and no mpiexec is found.
    """
    notes = []
    if via == "auto":
        via, why = choose_way(local_size, nnodes, mpiexec, mpiexec_args)
        notes.append(why)
    env = {k: v for k, v in os.environ.items() if not k.startswith(RANK_PREFIXES)}
    env.update(extra_env or {})
    budget = set_threads(env, local_size, threads)
    set_job(env, secret, run_id, role, nnodes)
    env["TORCHELASTIC_RESTART_COUNT"], env["TORCHELASTIC_MAX_RESTARTS"] = map(str, restarts)
    env |= {"MASTER_ADDR": master_addr, "MASTER_PORT": str(master_port or free_port())}
    env |= {"DISTTORCH_VIA": via}
    if flight_dir:
        env["DISTTORCH_FLIGHT_DIR"] = flight_dir
    # -W, -X and the like hold for the ranks too, as they do for multiprocessing's children.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *flags, CHILD, mode, target, *arguments]
    plan = Plan(local_size * nnodes, command, env, mode, via, node=node, nnodes=nnodes)
    if via == "mpi":
        path = find_mpiexec(mpiexec)
        plan.mpi = mpi_kind(path)
        if plan.mpi == "openmpi" and os.geteuid() == 0:
            # Its guard against root by accident; whoever runs us as root (a container) chose to.
            env.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
            env.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        plan.argv = [path, *start_options(plan.mpi, local_size), *mpiexec_args, *command]
    plan.notes = [
        *notes,
        f"starting {' '.join(plan.argv)}",
        f"MPI {plan.mpi or 'not used'}, {budget} thread(s) per rank, "
        f"MASTER_ADDR={env['MASTER_ADDR']} MASTER_PORT={env['MASTER_PORT']}",
    ]
    return plan


def choose_way(local_size, nnodes, mpiexec, mpiexec_args):
    """("mpi" or "spawn", why) where the user left it to us."""
    if mpiexec or mpiexec_args:
        return "mpi", "--via mpi, since mpiexec's options were given"
    if nnodes > 1:
        return "spawn", "--via spawn, since this launcher uses mpiexec on one node only"
    if local_size == 1:
        return "spawn", "--via spawn, since one rank needs no MPI"
    try:
        return "mpi", f"--via mpi, with {find_mpiexec()}"
    except UsageError:
        return "spawn", "--via spawn, since no mpiexec is beside this Python or on PATH"


def set_job(env, secret, run_id, role, nnodes):
    """Puts into `env` what all ranks of the job share, with torchrun's names where it has one."""
    env[SECRET_VARIABLE] = secret or env.get(SECRET_VARIABLE) or secrets.token_hex(32)
    env["GROUP_WORLD_SIZE"] = str(nnodes)
    env["ROLE_NAME"] = role
    set_run_id(env, run_id or secrets.token_hex(8))


def set_run_id(env, run_id):
    env["DISTTORCH_RUN_ID"] = env["TORCHELASTIC_RUN_ID"] = run_id


def start_options(kind, size):
    """mpiexec's options for `size` ranks on this node; binding is left to the user.

    Slots were checked before, so Open MPI's own count must not refuse; and its default binding
    would squeeze a rank's threads onto one core.
    """
    if kind == "hydra":
        return ["-launcher", "fork", "-rmk", "user", "-n", str(size)]
    if kind == "openmpi":
        return ["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none", "-n", str(size)]
    if kind == "slurm":
        return ["--nodes=1", f"--ntasks={size}", "--export=ALL", "--overcommit"]
    return ["-n", str(size)]


def find_mpiexec(wanted=None):
    """The path of mpiexec: `wanted`, else the one beside this Python, else the first on PATH.

    The one beside Python comes first because there the MPI wheels put it: a system's mpiexec that
    belongs to another MPI would start N separate jobs of one rank.
    """
    if wanted:
        path = shutil.which(wanted)
        if path is None:
            raise UsageError(f"--mpiexec {wanted}: no such program")
        return path
    beside = os.path.dirname(sys.executable)
    names = ["mpiexec", "mpirun"] + (["srun"] if "SLURM_JOB_ID" in os.environ else [])
    for directory in (beside, None):
        for name in names:
            if path := shutil.which(name, path=directory):
                return path
    raise UsageError(
        "no mpiexec beside this Python or on PATH; start the ranks without MPI by --via spawn, or "
        'install one with: pip install "disttorch[mpich]"'
    )


def mpi_kind(path):
    """Which MPI the mpiexec at `path` belongs to: hydra, openmpi, slurm or unknown."""
    if os.path.basename(path) == "srun":
        return "slurm"
    if os.path.exists(os.path.join(os.path.dirname(path), "hydra_pmi_proxy")):
        return "hydra"
    try:
        done = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{path} cannot be run: {error}") from None
    text = (done.stdout + done.stderr).lower()
    if b"open mpi" in text or b"open-mpi" in text or b"prrte" in text:
        return "openmpi"
    return "hydra" if b"hydra" in text or b"intel(r) mpi" in text else "unknown"


def cpu_cores():
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


ROOT = Path("/")


def count_gpus():
    """The NVIDIA GPUs that ranks will see; CUDA_VISIBLE_DEVICES decides where it is set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # CUDA stops at the first device that does not exist; -1 is the usual way to say none.
        devices = [d.strip() for d in visible.split(",")]
        return next((i for i, d in enumerate(devices) if d in ("", "-1")), len(devices))
    listed = ROOT / "proc/driver/nvidia/gpus"
    if listed.is_dir():
        return len(list(listed.iterdir()))
    # Some containers have the devices, but not what the driver tells of them
    return sum(d.name.removeprefix("nvidia").isdigit() for d in (ROOT / "dev").glob("nvidia*"))


def ranks_from(text):
    """The number of ranks that `--nproc-per-node text` means.

    Raises UsageError for anything but a positive number, gpu, cpu or auto, and for gpu without one.
    """
    if text == "cpu":
        return cpu_cores()
    if text == "gpu":
        if not (gpus := count_gpus()):
            raise UsageError("--nproc-per-node gpu, but no NVIDIA GPU is visible here; try cpu")
        return gpus
    if text == "auto":
        return count_gpus() or cpu_cores()
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UsageError(f"--nproc-per-node {text}: give a number from 1 up, or gpu, cpu or auto")
    return int(text)


def check_slots(size, oversubscribe):
    """Raises UsageError when `size` ranks are more than the slots (CPU cores, or GPUs if more)."""
    cores, gpus = cpu_cores(), count_gpus()
    slots, what = (gpus, "GPUs") if gpus > cores else (cores, "CPU cores")
    if size > slots and not oversubscribe:
        raise UsageError(
            f"{size} ranks are more than the {slots} slots ({what}) of this machine; "
            "add --oversubscribe to start them all the same"
        )


def set_threads(env, size, threads=None):
    """Gives each rank its share of the cores in `env`; what the user set there wins.

    Returns the budget. Without it every rank's BLAS would start a thread for every core, and
    threads that spin while they wait (OMP_WAIT_POLICY) take the core from those that work.
    """
    if threads:
        env.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    # A user who set only OMP_NUM_THREADS expects OpenBLAS to follow it.
    budget = env.get("OMP_NUM_THREADS") or str(max(1, cpu_cores() // size))
    for name in THREAD_VARIABLES:
        env.setdefault(name, budget)
    env.setdefault("OMP_WAIT_POLICY", "passive")
    return budget


def free_port():
    """A TCP port that nothing uses now; all ranks get the same one as MASTER_PORT."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
