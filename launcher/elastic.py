"""Starting a failed job again: with as many ranks as before, or with those that remain.

A job is started again after a rank has failed, and after nothing else: not when a signal or the
time ended it, a node was lost, or mpiexec broke down; nor when the rank's status says that its
command line is wrong. What a rank had done is lost but for what it saved: the script goes on from
its last checkpoint. On several nodes all launchers get one verdict, so that all start again.
"""

import sys
import time
from dataclasses import dataclass

from launcher.plan import UsageError
from launcher.report import NO_RANK, before_stop
from launcher.torchrun import seconds

# 2: wrong usage, as argparse and shells have it; 126, 127: a program that cannot be run.
HOPELESS = (2, 126, 127)


@dataclass
class Policy:
    """At most `most` restarts; `sizes`: the numbers of ranks that are allowed then, the largest
    first, or None for the same number as before."""

    most: int = 0
    sizes: tuple[int, ...] | None = None

    def next_size(self, size, lost):
        """How many ranks come after `size`, of which `lost` failed by themselves; 0 for none."""
        if self.sizes is None:
            return size
        return next((each for each in self.sizes if each <= size - lost), 0)


def policy_from(options, size, nnodes):
    """The Policy that the options mean for a job of `size` ranks; raises UsageError."""
    text = options.max_restarts
    if text is not None and not (text.isascii() and text.isdigit()):
        raise UsageError(f"--max-restarts {text}: give a whole number from 0 up")
    sizes = sizes_from(options, size)
    if sizes is None:
        return Policy(int(text or 0))
    if nnodes > 1:
        raise UsageError(
            "--elastic, --min-ranks and --elastic-sizes are for one node; on several, --max-restarts "
            "starts the same number of ranks again"
        )
    # Each restart has fewer ranks, so that there is an end without a limit.
    return Policy(sum(each < size for each in sizes) if text is None else int(text), sizes)


def sizes_from(options, size):
    if not (options.elastic or options.min_ranks is not None or options.elastic_sizes is not None):
        return None
    least = options.min_ranks or "1"
    if not (least.isascii() and least.isdigit() and 0 < int(least) <= size):
        raise UsageError(f"--min-ranks {least}: give a number from 1 to the job's {size} ranks")
    if options.elastic_sizes is None:
        return tuple(range(size, int(least) - 1, -1))
    parts = [part.strip() for part in options.elastic_sizes.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--elastic-sizes {options.elastic_sizes}: give numbers of ranks, as in 4,2,1"
        )
    return tuple(sorted({int(p) for p in parts if int(p) >= int(least)}, reverse=True))


class Restarts:
    """Runs a job and, as `policy` allows, the jobs that follow it.

    `make_job(options)` makes a Job; between jobs the options' number of ranks, time limit and name
    are changed, and `restarts` is set: (how many there have been, how many there may be).
    """

    def __init__(self, options, make_job):
        self.options, self.make_job = options, make_job
        self.told = []  # one sentence for each failure
        self.limit = seconds(options.timeout, "--timeout")
        self.began = time.monotonic()

    def run(self):
        """Returns the exit status of the last job."""
        job = self.make_job(self.options)
        size = job.plan.local_size
        policy = policy_from(self.options, size, job.plan.nnodes)
        job.plan.env["TORCHELASTIC_MAX_RESTARTS"] = str(policy.most)
        while True:
            status = job.run()
            following = self.following(job, size, policy)
            if not following:
                break
            count, size = len(self.told), following
            say(f"starting again with {ranks(size)}: restart {count} of at most {policy.most}")
            job = self.prepare(job, size, (count, policy.most))
        self.report(status, size)
        return status

    def following(self, job, size, policy):
        """The number of ranks to start again with; 0 if the job has come to its end."""
        verdict = job.verdict
        if verdict is None or not verdict.status or verdict.rank == NO_RANK or not job.agreed():
            return 0
        if not policy.most or verdict.status in HOPELESS:
            return 0
        if len(self.told) == policy.most:
            say(f"no more restarts: --max-restarts {policy.most} is used up")
            return 0
        following = policy.next_size(size, lost_by(job))
        if not following:
            say(
                f"no restart: {ranks(max(0, size - lost_by(job)))} of {size} would remain; allowed are "
                f"{', '.join(map(str, policy.sizes))}"
            )
        elif self.limit and self.left() <= 0:
            following = 0
        if following:
            self.told.append(f"with {ranks(size)}: {verdict.sentence}")
        return following

    def left(self):
        return self.limit - (time.monotonic() - self.began)

    def prepare(self, job, size, restarts):
        options = self.options
        options.nproc_per_node, options.restarts = str(size), restarts
        options.rdzv_id = job.plan.env["DISTTORCH_RUN_ID"]
        if self.limit:
            options.timeout = str(max(self.left(), 0.01))
        return self.make_job(options)

    def report(self, status, size):
        if not self.told:
            return
        count = len(self.told)
        end = "ended well" if status == 0 else f"failed with status {status}"
        say(f"the job {end} with {ranks(size)} after {count} restart{'s' * (count > 1)}; before,")
        for number, sentence in enumerate(self.told):
            say(f"  start {number}, {sentence}")


def lost_by(job):
    """How many ranks failed by themselves, and not because another had."""
    failures = before_stop(job.failures, job.stopped_at)
    return max(1, len({f.rank for f in failures if not f.consequence and f.rank != NO_RANK}))


def ranks(count):
    return f"{count} rank{'s' * (count != 1)}"


def say(sentence):
    print(f"disttorch-run: {sentence}", file=sys.stderr, flush=True)
