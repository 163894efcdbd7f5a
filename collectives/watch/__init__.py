"""The control plane of a job: who has left, failed or died, and where everybody is.

```
process.py   Watch: a process's connection to the watch of its job
hub.py       the thread in rank 0 that all are connected to
link.py      the connections: frames of JSON between ends that know the job's secret
blocked.py   native calls that nobody can interrupt
base.py      when a wait is in vain, and the sentence that says so
local.py     the same for ranks that are threads
report.py    what ranks tell each other, and how it reads
```
"""

from .base import BaseWatch, NullWatch
from .local import LocalWatch
from .process import Watch
from .report import Ended, Report

__all__ = ["BaseWatch", "Ended", "LocalWatch", "NullWatch", "Report", "Watch"]
