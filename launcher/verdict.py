"""The Verdict on a job whose ranks have all ended: why, whose fault it was, and the exit status."""

import signal
import time

from launcher.report import (
    NO_RANK,
    Failure,
    Verdict,
    aborted_by,
    before_stop,
    exit_status,
    failure_sentence,
    first_failure,
    signal_name,
)

TIMEOUT_STATUS = 124  # as timeout(1)


def verdict_on(job):
    """The Verdict on `job` as far as its launcher knows, which is all of it on node 0."""
    if isinstance(job.reason, signal.Signals):
        sentence = f"the job was stopped by {signal_name(job.reason)}{job.where}"
        return Verdict(128 + job.reason, sentence)
    if job.reason == "timeout":
        what = f"the job did not end{job.where} and was stopped; where each rank was stands above"
        return Verdict(TIMEOUT_STATUS, what)
    failures = job.failures
    if job.reason != "mpiexec" and not failures and job.status:
        failures = abort_failure(job)
    # Ranks that failed because they were told to end do not say why they were.
    if before_stop(failures, job.stopped_at) or (failures and not job.complaint):
        first, also = first_failure(failures, job.stopped_at)
        sentence = failure_sentence(first, job.plan.size, also, job.well)
        return Verdict(exit_status(first.status), sentence, first.rank, job.words(first.rank))
    if job.complaint:
        text = b"" if job.verbose else job.starters_said
        return Verdict(exit_status(job.status or 1), job.complaint, NO_RANK, text)
    if job.reason:
        return Verdict(1, "the job was stopped; the launcher of node 0 did not say why in time")
    return Verdict(0)


def abort_failure(job):
    """The Failure of the rank that called MPI_Abort, as a list; empty if none said so."""
    said = {number: job.output.tail(number) for number in job.ranks}
    number, status = aborted_by(said, job.starters_said) or (NO_RANK, 0)
    if number not in job.ranks:
        return []
    return [Failure(number, job.ranks[number].host, time.monotonic(), status)]
