"""The least a server in Python can do: a bare epoll loop that reads, and sends one fixed answer."""

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
            # Requests of this benchmark come in one piece; only their end is taken for granted here.
            elif answer(client):
                poll.unregister(number)
                clients.pop(number).close()


def answer(client: socket.socket) -> bool:
    """Whether the client has gone."""
    try:
        if not client.recv(65536):
            return True
        client.send(HEAD + BODY)
    except OSError:
        return True
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
