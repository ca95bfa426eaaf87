"""How long the server waits for a client that takes nothing of what is sent to it: then the connection is cut.

Closing it would not do: what was not taken yet, and the descriptor, would be kept until the client goes by itself.
"""

from __future__ import annotations

import asyncio
import socket
import struct

DROP_UNSENT = struct.pack("ii", 1, 0)
"""SO_LINGER: the kernel does not keep it either."""


def impatient(protocol: type[asyncio.Protocol], seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, but a client that keeps a sender waiting for so long is cut off."""

    class Impatient(protocol):  # type: ignore[valid-type, misc]  # httptools' or h11's, whichever is installed
        _cut: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._cut = asyncio.get_running_loop().call_later(seconds, self._abort)

        def resume_writing(self) -> None:
            self._be_patient()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._be_patient()
            super().connection_lost(exc)

        def _abort(self) -> None:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DROP_UNSENT)
            self.transport.abort()

        def _be_patient(self) -> None:
            if self._cut is not None:
                self._cut.cancel()

    return Impatient
