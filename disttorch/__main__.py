"""``python -m disttorch script.py [args]``: run a script written for torch, unchanged.

    python -m disttorch script.py [arguments]
    python -m disttorch -m module [arguments]
    python -m disttorch -c "code" [arguments]

``import torch`` means disttorch there. All else is as under ``python script.py``: ``sys.argv``,
``sys.path[0]``, ``__name__ == "__main__"``, tracebacks and exit codes.
"""

from __future__ import annotations

import os
import sys
import types

from . import as_torch

_USAGE = "usage: python -m disttorch script.py | -m module | -c code  [arguments]"


def main() -> None:
    """Run what the command line names."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, file=sys.stderr if not arguments else sys.stdout)
        raise SystemExit(0 if arguments else 2)
    first = arguments[0]
    if first in ("-m", "-c"):
        if len(arguments) < 2:
            print(f"{first} needs an argument\n{_USAGE}", file=sys.stderr)
            raise SystemExit(2)
        as_torch.install()
        _run_module(arguments[1:]) if first == "-m" else _run_code(arguments[1:])
    elif first.startswith("-"):
        print(f"unknown option {first}\n{_USAGE}", file=sys.stderr)
        raise SystemExit(2)
    else:
        as_torch.install()
        _run_script(arguments)


def _run_module(arguments) -> None:
    import runpy

    sys.argv = list(arguments)
    sys.path[0] = os.getcwd()
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _run_code(arguments) -> None:
    sys.argv = ["-c", *arguments[1:]]
    sys.path[0] = ""
    _execute(compile(arguments[0], "<string>", "exec"), _fresh_main())


def _run_script(arguments) -> None:
    path = arguments[0]
    sys.argv = list(arguments)
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        print(f"can't open file {os.path.abspath(path)!r}: {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    main_module = _fresh_main()
    main_module.__file__ = path
    _execute(lambda: compile(source, path, "exec"), main_module)


def _fresh_main() -> types.ModuleType:
    """The module that the script's names live in; pickles and new processes look for it here."""
    made = types.ModuleType("__main__")
    made.__builtins__ = __builtins__  # type: ignore[attr-defined]
    sys.modules["__main__"] = made
    return made


def _execute(code, module) -> None:
    try:
        exec(code() if callable(code) else code, module.__dict__)
    except Exception as error:
        # the traceback begins with the script's own first line
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
            traceback = traceback.tb_next
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        _flush()
        raise SystemExit(1) from None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed by the script
            pass


if __name__ == "__main__":
    main()
