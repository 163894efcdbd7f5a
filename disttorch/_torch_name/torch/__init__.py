"""Found under the name ``torch`` by processes that a script run by ``python -m disttorch`` starts."""

import sys
from pathlib import Path

# The folder that holds disttorch itself, wherever the new process was started
sys.path.append(str(Path(__file__).resolve().parents[3]))

from disttorch.as_torch import install

install()
