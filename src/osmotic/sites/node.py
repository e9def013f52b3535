"""The program of a site's SuperNode: Flower's own, but that a link may be cut at any moment, and that the process ends when its work does.

Flower's (1.41) takes a link that is cut in the middle of a TLS handshake for a false certificate. It gives up, ends its main thread and
leaves the process to the threads beside it: alive, and deaf. Here it tries again; and what has ended for any other reason can be
started again.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
from flwr.supercore.retry import http_retry
from flwr.supercore.retry.retry_invoker import RetryInvoker
from flwr.supernode.cli import flower_supernode


def main() -> None:
    """What `flower-supernode` does; never returns."""
    http_retry.RetryInvoker = Patient
    code = 1
    try:
        flower_supernode()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # a full disk, too, must not leave it alive
            os._exit(code)


# In OpenSSL's words: another certificate, no TLS at all, no version or cipher that both have.
OBJECTIONS = (
    "certificate",
    "wrong version",
    "wrong_version",
    "alert",
    "unsupported protocol",
    "unsupported_protocol",
)


class Patient(RetryInvoker):
    """Tries again after whatever befalls a link; only what TLS itself objects to is false for good."""

    def __init__(self, *args: Any, should_giveup: Callable[[Exception], bool], **more: Any) -> None:
        def gives_up(error: Exception) -> bool:
            told = str(error).lower()
            cut = isinstance(error, httpx.TransportError) and not any(word in told for word in OBJECTIONS)
            return not cut and should_giveup(error)

        super().__init__(*args, should_giveup=gives_up, **more)


if __name__ == "__main__":
    main()
