"""Servers on the loopback, for a download and for what can go wrong with one."""

import contextlib
import http.server
import socket
import threading


@contextlib.contextmanager
def serving(content, status=200, length=None, stall=False, delay=0, first=()):
    """Serves one answer at every path; yields the server's address and a list of the requests.

    The first byte comes after `delay` seconds. The first requests get what `first` holds instead:
    a status, or "cut" or "stall" for the first half of the content.
    """
    requests, over = [], threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            if over.wait(delay):
                return
            kind = first[len(requests) - 1] if len(requests) <= len(first) else status
            code, sent = (kind, content) if isinstance(kind, int) else (200, content[::2])
            self.send_response(code)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(sent)
            if stall or kind == "stall":
                over.wait(20)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def babbling():
    """A server that does not speak HTTP, for one connection; yields its address."""

    def babble():
        visitor, _ = server.accept()
        with visitor:
            visitor.recv(10_000)
            visitor.sendall(b"220 ready\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=babble)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def unanswered_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
