"""A TCP proxy in front of a server that fails in the ways in which networks and overloaded servers do."""

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from itertools import repeat

_SLOW_DOWN = b"""HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"""
_BODY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@contextlib.contextmanager
def faulty_proxy(environment: dict[str, str], fault: str, count: int | None) -> Iterator[tuple[dict[str, str], list[str]]]:
    """Run a proxy in front of the server of ``AWS_ENDPOINT_URL``.

    Parameters
    ----------
    environment
        Variables that lead to the server.
    fault
        ``"reset"``: the connection is reset after the request; ``"cut"``: after 1,000 bytes of the answer; ``"slow down"``: the
        answer is 503; ``"silent"``: there is no answer.
    count
        How many connections fail before the others go through; None: all fail.

    Yields
    ------
    environment, connections
        Variables that lead through the proxy, and the fate of each connection so far.
    """
    host, _, port = environment["AWS_ENDPOINT_URL"].removeprefix("http://").partition(":")
    fates = iter([fault] * count) if count is not None else repeat(fault)
    connections: list[str] = []
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = stack.enter_context(listener.accept()[0])
                    connections.append(next(fates, "through"))
                    arguments = (client, (host, int(port)), connections[-1])
                    serving = threading.Thread(target=_serve, args=arguments, daemon=True)
                    serving.start()
                    stack.callback(_end, client, serving)

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{listener.getsockname()[1]}"}, connections
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()


def _end(client: socket.socket, serving: threading.Thread) -> None:
    # Closed under a thread that waits for it, a socket would be an error there.
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)
    serving.join()


def _serve(client: socket.socket, server: tuple[str, int], fate: str) -> None:
    # The connection may end at any moment from either side.
    with contextlib.suppress(OSError):
        if fate in ("through", "cut"):
            with socket.create_connection(server) as upstream:
                _relay(client, upstream, 1_000 if fate == "cut" else None)
        else:
            client.recv(1 << 16)
        if fate == "slow down":
            client.sendall(_SLOW_DOWN % len(_BODY) + _BODY)
            client.shutdown(socket.SHUT_WR)
            # Closed with bytes unread, it would be reset.
            while client.recv(1 << 16):
                pass
        if fate in ("reset", "cut"):
            # Without lingering, closing sends a reset.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if fate != "silent":
            client.close()


def _relay(client: socket.socket, upstream: socket.socket, limit: int | None) -> None:
    # Until one side ends, or the answers have the length of the limit.
    answered = 0
    while limit is None or answered < limit:
        for source in select.select([client, upstream], [], [])[0]:
            if not (data := source.recv(1 << 16)):
                return
            if source is upstream:
                data = data[: None if limit is None else limit - answered]
                answered += len(data)
            (client if source is upstream else upstream).sendall(data)
