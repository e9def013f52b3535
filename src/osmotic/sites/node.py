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
from typing import Any

import httpx
from flwr.supercore.retry import http_retry
from flwr.supercore.retry.retry_invoker import RetryInvoker
from flwr.supernode.cli import flower_supernode


def main() -> None:
    """What `flower-supernode` does; never returns."""
    http_retry.RetryInvoker = Patient
    code = 0
    try:
        flower_supernode()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Patient(RetryInvoker):
    """Tries again after whatever befalls a link; only a certificate can be false for good."""

    def __init__(self, *args: Any, should_giveup: Callable[[Exception], bool], **more: Any) -> None:
        def gives_up(error: Exception) -> bool:
            cut = isinstance(error, httpx.TransportError) and "certificate" not in str(error).lower()
            return not cut and should_giveup(error)

        super().__init__(*args, should_giveup=gives_up, **more)


if __name__ == "__main__":
    main()
