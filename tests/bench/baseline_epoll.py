"""Minimum cost of a server in Python: an epoll loop that reads, and sends a fixed response."""

import select
import socket
import sys

BODY = b'{"prediction":"setosa"}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def main(port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    while True:
        for number, _ in poll.poll():
            client = clients.get(number)
            if client is None:
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
            # Requests of this benchmark arrive in one piece, so the loop does not look for their end.
            elif answer(client):
                poll.unregister(number)
                clients.pop(number).close()


def answer(client: socket.socket) -> bool:
    """Sends the response, and returns whether the client has closed the connection."""
    try:
        if not client.recv(65536):
            return True
        client.send(HEAD + BODY)
    except OSError:
        return True
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
