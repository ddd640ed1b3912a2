from __future__ import annotations

import os
import socket
import threading
from unittest.mock import Mock

from chat_engine.service.shutdown import ShutdownWatch, listening_sockets


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_only_listening_sockets_of_the_process_are_found() -> None:
    with listener() as server, socket.create_connection(server.getsockname()):
        found = listening_sockets(os.getpid())
        assert f"socket:[{os.fstat(server.fileno()).st_ino}]" in found.values()
        with listener():
            assert len(listening_sockets(os.getpid())) == len(found) + 1
    assert len(listening_sockets(os.getpid())) == len(found) - 1


def test_a_process_that_cannot_be_seen_has_no_sockets() -> None:
    assert listening_sockets(2**22 + 1) == {}


def test_a_closed_socket_is_noticed_once() -> None:
    stopped = threading.Event()
    on_stop = Mock(side_effect=stopped.set)
    with listener():
        watch = ShutdownWatch(os.getpid(), on_stop)
        watch.start()
        watch.start()
        with listener():  # a new one is no sign
            assert not stopped.wait(0.4)
    assert stopped.wait(5)
    watch.close()
    on_stop.assert_called_once_with()


def test_a_watch_that_never_began_closes() -> None:
    ShutdownWatch(os.getpid(), Mock()).close()
