#!/usr/bin/env python3
"""One piece of the work that real programs do, for the benchmarks: prints the nanoseconds of that work alone.

    work.py untar | sqlite | http | status
"""
import http.client
import os
import shutil
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler

ARCHIVE, TREE = "/data/tree.tar.gz", "/data/tree"
UNTARRED, DATABASE = "/tmp/x", "/tmp/work.sqlite"
TRANSACTIONS, INSERTS = 20, 100
REQUESTS = 300


def timed(work):
    began = time.perf_counter_ns()
    work()
    return time.perf_counter_ns() - began


def untar():
    """Unpacks the archive of the image's tree."""
    shutil.rmtree(UNTARRED, ignore_errors=True)
    os.mkdir(UNTARRED)
    try:
        return timed(lambda: subprocess.run(["tar", "xzf", ARCHIVE, "-C", UNTARRED], check=True))
    finally:
        shutil.rmtree(UNTARRED)


def sqlite():
    """2,000 rows in 20 transactions, each of which waits for the disk."""

    def work():
        database = sqlite3.connect(DATABASE, isolation_level=None)
        database.execute("CREATE TABLE work (number INTEGER PRIMARY KEY, text TEXT)")
        for _ in range(TRANSACTIONS):
            database.execute("BEGIN")
            for _ in range(INSERTS):
                database.execute("INSERT INTO work (text) VALUES (?)", ("word " * 20,))
            database.execute("COMMIT")
        database.close()

    def remove():
        for name in (DATABASE, DATABASE + "-journal"):
            if os.path.exists(name):
                os.remove(name)

    remove()
    try:
        return timed(work)
    finally:
        remove()


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"word " * 200
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingTCPServer):
    # Without the name that http.server's own class looks up.
    allow_reuse_address = daemon_threads = True
    request_queue_size = 64


def http_requests():
    """300 requests over the loopback, each on a connection of its own."""
    with Server(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def work():
            for _ in range(REQUESTS):
                connection = http.client.HTTPConnection(*server.server_address)
                connection.request("GET", "/")
                answer = connection.getresponse()
                if answer.status != 200 or len(answer.read()) != 1000:
                    sys.exit("work.py: a request was answered wrongly")
                connection.close()

        took = timed(work)
        server.shutdown()
        return took


def status():
    """What `git status` does: the attributes of every file of a tree."""

    def walk(folder):
        with os.scandir(folder) as entries:
            for entry in entries:
                os.lstat(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    walk(entry.path)

    return timed(lambda: walk(TREE))


WORK = {"untar": untar, "sqlite": sqlite, "http": http_requests, "status": status}


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in WORK:
        sys.exit(__doc__)
    print(WORK[sys.argv[1]]())
