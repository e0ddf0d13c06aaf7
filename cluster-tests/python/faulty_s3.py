"""A proxy before an S3 server that fails as it is told: faulty_s3.py PORT SERVER_PORT

PUT /_faults takes a list such as [{"method": "PUT", "contains": ".parquet", "fault": "error", "times": 2}]; each request
takes the first that fits, as often as it says. GET /_faults returns what is left.

error      500, nothing was done
slow_down  503 SlowDown, nothing was done
reset      the connection ends, nothing was done
lost       it was done, and the connection ends without an answer
late       it was done, and the answer comes after any client has given up
"""

import http.client
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT, SERVER_PORT = int(sys.argv[1]), int(sys.argv[2])
LATE_SECONDS = 6
# What concerns one connection, or is written anew.
OWN = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}

lock = threading.Lock()
faults = []


def take(method, path):
    with lock:
        for fault in faults:
            if fault["times"] > 0 and fault["method"] == method and fault["contains"] in path:
                fault["times"] -= 1
                return fault["fault"]
    return None


def pass_on(method, path, headers, body):
    server = http.client.HTTPConnection("127.0.0.1", SERVER_PORT, timeout=60)
    try:
        kept = {name: value for name, value in headers.items() if name.lower() not in OWN}
        server.request(method, path, body=body, headers=kept)
        answer = server.getresponse()
        return answer.status, answer.getheaders(), answer.read()
    finally:
        server.close()


class Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def serve(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path == "/_faults":
            return self.control(body)
        fault = take(self.command, self.path)
        if fault == "error":
            return self.fail(500, "InternalError")
        if fault == "slow_down":
            return self.fail(503, "SlowDown")
        if fault == "reset":
            return self.hang_up()
        status, headers, content = pass_on(self.command, self.path, self.headers, body)
        if fault == "late":
            time.sleep(LATE_SECONDS)
        if fault in ("late", "lost"):
            return self.hang_up()
        self.answer(status, headers, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def control(self, body):
        with lock:
            if self.command == "PUT":
                faults[:] = json.loads(body)
            left = [fault for fault in faults if fault["times"] > 0]
        self.answer(200, [("content-type", "application/json")], json.dumps(left).encode())

    def fail(self, status, code):
        content = f"<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>as told</Message></Error>"
        self.answer(status, [("content-type", "application/xml")], content.encode())

    def hang_up(self):
        self.close_connection = True

    def answer(self, status, headers, content):
        self.send_response_only(status)
        length = str(len(content))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in OWN:
                self.send_header(name, value)
        if status != 204:
            self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        # Clients that gave up.
        pass


Server(("127.0.0.1", PORT), Proxy).serve_forever()
