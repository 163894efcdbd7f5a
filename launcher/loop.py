"""The event loop of one launcher: descriptors, timers and signals, all handled in one thread."""

import contextlib
import os
import selectors
import signal
import time

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Loop:
    """Calls handlers of readable descriptors, of timers, and `on_signal(number)`."""

    def __init__(self, on_signal):
        self.on_signal = on_signal
        self.selector = selectors.DefaultSelector()
        self.timers = []  # (time, function)
        self.caught = []  # signals not yet handled

    def watch(self, file, handler, events=selectors.EVENT_READ):
        """Has `handler()` called whenever `file` is ready for `events`."""
        self.selector.register(file, events, handler)

    def unwatch(self, file):
        self.selector.unregister(file)

    def watches(self, file):
        return file in self.selector.get_map()

    def after(self, seconds, action):
        self.timers.append((time.monotonic() + seconds, action))

    def turn(self, wait=None):
        """Waits for events, at most until the next timer, and handles them; False if none came."""
        if self.timers and wait is None:
            wait = max(0.0, min(when for when, _ in self.timers) - time.monotonic())
        events = self.selector.select(wait)
        for key, _ in events:
            if self.watches(key.fileobj):  # not closed by an earlier one's handler
                key.data()
        while self.caught:
            self.on_signal(self.caught.pop(0))
        now = time.monotonic()
        due = [action for when, action in self.timers if when <= now]
        self.timers = [timer for timer in self.timers if timer[0] > now]
        for action in due:
            action()
        return bool(events)

    @contextlib.contextmanager
    def own_signals(self):
        """Signals wake the loop up and are handled there; the old handlers come back at the end."""
        wakeup, written = os.pipe()
        for end in (wakeup, written):
            os.set_blocking(end, False)
        self.watch(wakeup, lambda: os.read(wakeup, 4096))
        old_wakeup = signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        old = {s: signal.signal(s, lambda n, _: self.caught.append(n)) for s in STOP_SIGNALS}
        old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        try:
            yield
        finally:
            for signum, handler in old.items():
                signal.signal(signum, handler)
            signal.set_wakeup_fd(old_wakeup)
            os.close(written)
            os.close(wakeup)

    def close(self):
        self.selector.close()
