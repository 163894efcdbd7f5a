"""The processes that a launcher starts itself: one mpiexec, or the front of every rank."""

import os
import signal
import subprocess

from launcher.child import PLACE_VARIABLE, die_with_parent


class Starters:
    """Starts a Plan's processes, all writing to descriptor `output`, and knows which have ended."""

    def __init__(self, plan, output):
        self.plan, self.output = plan, output
        self.processes = {}  # mpiexec under None, or the front of each rank under its number

    def start(self, address):
        """Starts them; `address` is where the ranks' watchers find us. Raises OSError."""
        if self.plan.via == "mpi":
            self.processes[None] = self.popen(address, {})
            return
        count = self.plan.local_size
        for local in range(count):
            rank = self.plan.first + local
            place = f"{rank} {self.plan.size} {local} {count} {self.plan.node}"
            self.processes[rank] = self.popen(address, {PLACE_VARIABLE: place})

    def popen(self, address, more):
        us = os.getpid()
        return subprocess.Popen(
            self.plan.argv,
            env=self.plan.env | address | more,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,  # the terminal's Ctrl-C reaches us only: we pass it on
            preexec_fn=lambda: die_with_parent(us, signal.SIGKILL),
        )

    def running(self):
        """Process ids of those that have not ended."""
        return {process.pid for process in self.processes.values() if process.poll() is None}

    def pids(self):
        return {process.pid for process in self.processes.values()}

    def ended(self):
        """Exit statuses (negative: a signal) of those that have ended, by rank."""
        self.running()
        statuses = {rank: process.returncode for rank, process in self.processes.items()}
        return {rank: status for rank, status in statuses.items() if status is not None}
