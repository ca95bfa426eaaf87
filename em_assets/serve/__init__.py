"""`em-assets serve`: blocks, volumes and the viewer over HTTP, for any language, read-only.

`app.py` has the addresses; `parameters.py` reads queries, `block.py` answers for blocks, `representation.py` knows
HTTP's rules for parts and codings, `shelf.py` the volumes, `limits.py` what a request may cost, `metrics.py` counts,
`connections.py` cuts off who sends or takes too slowly, `openapi.py` documents; `pictures.py` is shared with
`em-assets view`.
Here: who is listened to, and when it ends.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from em_assets.datasets.fields import NAME_PATTERN
from em_assets.datasets.loading import load_sound_specs
from em_assets.errors import Unavailable, Unsupported
from em_assets.serve.client import SERVER_EXTRA, client_folder, require
from em_assets.serve.limits import Limits
from em_assets.settings import Settings, read_settings
from em_assets.store import Store, open_store

if TYPE_CHECKING:
    from socket import socket

    import uvicorn

    from em_assets.serve.shelf import Shelf

__all__ = ["LOCAL", "LOOPBACK", "Limits", "address_of", "listen", "open_shelf", "serve"]

LOOPBACK = "127.0.0.1"
LOCAL = (LOOPBACK, "localhost", "[::1]")
PORT = 8080


def serve(
    settings: Settings | None = None,
    *,
    host: str = LOOPBACK,
    port: int = PORT,
    limits: Limits | None = None,
    cors_origins: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serves the finished datasets of the store until SIGTERM (then it returns) or Ctrl-C (KeyboardInterrupt).

    Requests under way are finished first. A `port` of 0 is a free one. `cors_origins` are those of pages elsewhere
    that may read answers (`*`: of any). Raises Unavailable if the port is taken, Unsupported if the extra `view` is
    missing or the system does not allow as many open files as that many requests take.
    """
    require(SERVER_EXTRA, "the service", "read blocks in Python or with `em-assets read`")
    settings = settings or read_settings()
    limits = limits or Limits()
    shelf = open_shelf(settings)
    try:
        client, missing = client_folder(), ""
    except Unsupported as error:
        client, missing = None, f"; no viewer: {error}"
    from em_assets.serve.app import build_app
    from em_assets.serve.connections import allow_files

    allow_files(limits)
    hosts = LOCAL if is_local(host) else ["*"]
    with listen(host, port) as listening:
        server: uvicorn.Server | None = None
        app = build_app(
            shelf,
            limits,
            client,
            allowed_hosts=hosts,
            cors_origins=cors_origins,
            is_ending=lambda: server is not None and server.should_exit,
        )
        server = new_server(app, limits.seconds, limits)
        say(f"{shelf.store.uri('')}: {address_of(listening)}v1/datasets   (Ctrl-C ends it){missing}")
        run_until_told(server, listening)


def open_shelf(settings: Settings) -> Shelf:
    """The datasets of the settings' store: those of the specs, and in a folder those whose spec is gone."""
    from em_assets.blocks.opening import open as open_volume
    from em_assets.serve.shelf import Shelf

    store = open_store(settings.root)
    specs, wrong = load_sound_specs(settings.dataset_folders())
    known = {*specs, *wrong}
    return Shelf(store, lambda: known | _stored(store), lambda name: open_volume(name, settings=settings))


def _stored(store: Store) -> set[str]:
    """Datasets in a folder; a bucket is not searched for them."""
    root = store.local_path("")
    found = root.glob("*/metadata.json") if root is not None else ()
    return {file.parent.name for file in found if re.match(NAME_PATTERN, file.parent.name)}


def is_local(host: str) -> bool:
    return host in (*LOCAL, "::1")


def new_server(app: Any, linger_seconds: float, limits: Limits | None = None) -> uvicorn.Server:
    """One that gives what is under way so many seconds when it is to end; of the limits, those of connections hold."""
    import uvicorn
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    from em_assets.serve.connections import bounded

    limits = limits or Limits()
    config = uvicorn.Config(
        app,
        http=bounded(AutoHTTPProtocol, limits),
        log_level="critical",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        limit_concurrency=limits.connections + limits.spare_connections + 1,  # of answers to clients that left, too
        timeout_graceful_shutdown=max(1, round(linger_seconds)),
    )
    return uvicorn.Server(config)


def run_until_told(server: uvicorn.Server, listening: socket) -> None:
    """Returns after SIGTERM; leaves Ctrl-C as KeyboardInterrupt."""
    before = signal.signal(signal.SIGTERM, _told)  # uvicorn hands the signal on when it is done
    try:
        server.run(sockets=[listening])
    except _Told:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


class _Told(BaseException):
    """SIGTERM came. No Exception: whatever runs when it comes must not take it for its own."""


def _told(*_: object) -> NoReturn:
    raise _Told


def listen(host: str, port: int) -> socket:
    """Raises Unavailable if that cannot be had."""
    import socket

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise Unavailable(
            f"port {port} of {host} cannot be listened on ({getattr(error, 'strerror', None) or error}); "
            "choose another --port; 0 takes a free one."
        ) from error


def address_of(listening: socket) -> str:
    """As a browser takes it, with a `/` at its end."""
    import socket

    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  # asked for with --host
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
