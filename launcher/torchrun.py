"""torchrun's spellings: what they mean here, and which are refused."""

from launcher.plan import UsageError

JOIN_SECONDS = 300.0


def check_torchrun(options):
    """Raises UsageError for an option of torchrun's that asks for what is not done here."""
    if options.rdzv_backend not in ("static", "c10d"):
        raise UsageError(
            f"--rdzv-backend {options.rdzv_backend}: the launchers find each other by themselves; "
            "give static or c10d, or leave it out"
        )
    if options.redirects != "0":
        raise UsageError(
            f"--redirects {options.redirects}: output is not hidden by stream; --log-dir DIR writes "
            "files, and --local-ranks-filter shows fewer ranks"
        )
    if options.tee != "0" and not options.log_dir:
        raise UsageError(f"--tee {options.tee}: give --log-dir DIR, where the files shall be")
    if options.start_method not in ("spawn", "fork", "forkserver"):
        raise UsageError(
            f"--start-method {options.start_method}: leave it out; ranks are new processes"
        )


def number_of_nodes(text):
    """The nodes that `--nnodes text` means, a number or MIN:MAX of equal parts."""
    least, _, most = text.partition(":")
    if most and most != least:
        raise UsageError(
            f"--nnodes {text}: the number of nodes cannot change while a job runs; give one number"
        )
    return whole_number(least, "--nnodes")


def endpoint(options):
    """(address, port) of node 0 as text, None where not given.

    --rdzv-endpoint is another way to say --master-addr and --master-port.
    """
    address, port = options.master_addr, options.master_port
    if not options.rdzv_endpoint or options.standalone:
        return address, port
    text = options.rdzv_endpoint
    host, colon, number = text.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):  # no port, or a bare IPv6 address
        host, number = text, None
    host = host.removeprefix("[").removesuffix("]")
    if not host or (address or host) != host or (port or number) != number and number:
        raise UsageError(
            f"--rdzv-endpoint {text}: give HOST:PORT, and not another --master-addr or --master-port"
        )
    return host, number or port


def time_to_join(options):
    """Seconds to wait for all nodes, from --rdzv-timeout or --rdzv-conf."""
    settings = {}
    for part in filter(None, options.rdzv_conf.split(",")):
        name, _, value = part.partition("=")
        if name not in ("timeout", "join_timeout"):
            raise UsageError(f"--rdzv-conf {part}: only timeout and join_timeout are known here")
        settings[name] = value
    text = options.rdzv_timeout or settings.get("join_timeout") or settings.get("timeout")
    return seconds(text, "--rdzv-timeout") or JOIN_SECONDS


def seconds(text, name):
    """A positive number of seconds; None for None."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        value = -1.0
    if value is not None and not 0 < value < float("inf"):
        raise UsageError(f"{name} {text}: give a positive number of seconds")
    return value


def whole_number(text, name, largest=1 << 16):
    """A number from 1 to `largest`; None for None."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= largest):
        raise UsageError(f"{name} {text}: give a whole number from 1 to {largest}")
    return int(text)
