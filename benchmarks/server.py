"""nginx on loopback with a configuration of its own: a port for each latency, that waits so long before each answer.

The access log is what requests and bytes are counted from, so every client is judged by the server.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

MODULE_FOLDERS = ("/usr/lib/nginx/modules", "/usr/lib64/nginx/modules")
LUA_MODULES = ("ndk_http_module.so", "ngx_http_lua_module.so")
"""Debian: libnginx-mod-http-lua."""
START_SECONDS = 10.0

CONFIGURATION = """
{modules}
{user}
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    log_format counted '$server_port $status $body_bytes_sent $request_method $uri';
    access_log {folder}/access.log counted;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_timeout 60s;
    keepalive_requests 1000000;
    gzip off;
    default_type application/octet-stream;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{servers}
}}
"""
SERVER = """
    server {{
        listen 127.0.0.1:{port} backlog=511;
        root {root};
        {delay}
        limit_rate {bytes_per_second};
        {locations}
    }}
"""


class CannotServe(Exception):
    """nginx, or its Lua module, is not installed, or nginx does not start."""


@dataclass(frozen=True)
class Traffic:
    """What one client asked for."""

    requests: int
    body_bytes: int
    failed_requests: int
    """Answered with neither data (200, 206) nor "unchanged" (304)."""


class Nginx:
    """Serves `root` while the `with` block runs, on one port per latency."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        latencies_ms: list[float],
        *,
        bytes_per_second: int = 0,
        locations: str = "",
        probe: str = "info",
    ) -> None:
        """`bytes_per_second` limits each reply (0: nothing does). `locations` are further lines for each server.
        `probe` is a file below `root`, asked for to see whether the server is up.
        """
        self._bytes_per_second, self._locations, self._probe = bytes_per_second, locations, probe
        self._folder = folder.resolve()
        self._root = root.resolve()
        self._ports = dict(zip(latencies_ms, _free_ports(len(latencies_ms)), strict=True))
        self._log = self._folder / "access.log"
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, latency_ms: float) -> str:
        return f"http://127.0.0.1:{self._ports[latency_ms]}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        configuration = self._folder / "nginx.conf"
        configuration.write_text(self._configuration())
        command = [_nginx(), "-p", str(self._folder), "-c", str(configuration), "-e", str(self._folder / "error.log")]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr)
        try:
            for latency_ms in self._ports:
                self._wait_until_it_answers(latency_ms)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def log_size(self) -> int:
        return self._log.stat().st_size

    def traffic_since(self, log_size: int) -> Traffic:
        """Everything logged after the log had this size. Waits until nothing is added any more."""
        while True:
            before = self.log_size()
            time.sleep(0.1)  # a line is written after its last byte was sent
            if self.log_size() == before:
                break
        with self._log.open() as file:
            file.seek(log_size)
            lines = [line.split(" ", 4) for line in file]
        return Traffic(
            requests=len(lines),
            body_bytes=sum(int(line[2]) for line in lines),
            failed_requests=sum(line[1] not in ("200", "206", "304") for line in lines),
        )

    def _configuration(self) -> str:
        folder = _lua_folder() if any(self._ports) else None
        modules = "\n".join(f"load_module {folder}/{name};" for name in LUA_MODULES) if folder else ""
        servers = "".join(
            SERVER.format(
                port=port,
                root=self._root,
                delay=_delay(latency_ms),
                bytes_per_second=self._bytes_per_second,
                locations=self._locations,
            )
            for latency_ms, port in self._ports.items()
        )
        user = "user root;" if os.geteuid() == 0 else ""  # the work folder may be readable by its owner alone
        return CONFIGURATION.format(modules=modules, user=user, folder=self._folder, servers=servers)

    def _wait_until_it_answers(self, latency_ms: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"{self.url(latency_ms)}/{self._probe}", timeout=START_SECONDS) as reply:
                    reply.read()
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log = (self._folder / "error.log").read_text()[-2000:]
                    raise CannotServe(f"nginx does not serve {self._root} ({error}); its log ends: {log}") from None
                time.sleep(0.05)
            else:
                return

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def _delay(latency_ms: float) -> str:
    return f"access_by_lua_block {{ ngx.sleep({latency_ms / 1000}) }}" if latency_ms else ""


def _nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise CannotServe("nginx is not installed; on Debian: apt-get install nginx libnginx-mod-http-lua.")
    return found


def _lua_folder() -> str:
    beside_nginx = str(Path(_nginx()).parents[1] / "lib/nginx/modules")
    for folder in (*MODULE_FOLDERS, beside_nginx):
        if all((Path(folder) / name).is_file() for name in LUA_MODULES):
            return folder
    raise CannotServe(
        "latency needs nginx's Lua module; on Debian: apt-get install libnginx-mod-http-lua, or give --latency 0."
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports
