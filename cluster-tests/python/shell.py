"""A person at a terminal: types into `signaldb sql`, reads what it shows, and comes back another day.

Binary, node and history come from the environment; the last line says whether all went as expected.
"""

import os
import pty
import re
import select
import time

DEADLINE = 60
ENDLESS = "SELECT count(*) FROM generate_series(1, 10000000) AS a, generate_series(1, 10000000) AS b;"


class Shell:
    def __init__(self):
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(os.environ["SIGNALDB"], ["signaldb", "sql"])
        self.shown = ""

    def read(self, seconds):
        """Takes what is shown within some time; False at the end."""
        if select.select([self.terminal], [], [], seconds)[0]:
            try:
                self.shown += os.read(self.terminal, 65536).decode(errors="replace")
            except OSError:
                return False
        return True

    def expect(self, pattern):
        """Waits until the pattern is shown, and forgets everything up to it."""
        until = time.monotonic() + DEADLINE
        while not (found := re.search(pattern, self.shown)):
            assert self.read(0.2) and time.monotonic() < until, f"no {pattern!r} in {self.shown!r}"
        self.shown = self.shown[found.end() :]

    def type(self, text):
        os.write(self.terminal, text.encode())

    def interrupt(self, pattern):
        """Ctrl-C until the pattern is shown: the terminal may not be back to normal yet."""
        until = time.monotonic() + DEADLINE
        while not re.search(pattern, self.shown):
            assert time.monotonic() < until, f"no {pattern!r} in {self.shown!r}"
            self.type("\x03")
            assert self.read(1), self.shown
        self.expect(pattern)

    def end(self):
        """Ctrl-D, and the exit code. The prompt is shown before the terminal takes it, so it may have to be typed again."""
        until = time.monotonic() + DEADLINE
        typed = 0
        while self.read(0.2):
            now = time.monotonic()
            assert now < until, f"it does not end: {self.shown!r}"
            if now > typed + 1:
                typed = now
                try:
                    self.type("\x04")
                except OSError:
                    break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


shell = Shell()
shell.expect("signaldb> ")
shell.type("SELECT 40 +\r")
shell.type("2 AS answer;\r")
shell.expect(r"\|\s+42 \|")
shell.expect("1 row")
shell.type("SELECT nope;\r")
shell.expect("No field named nope")
shell.type("SELECT * FROM traces;\r")
shell.expect(r"-\[ row 1 \]-")
shell.expect(r"service_name\s+\| shop")
shell.expect("1 row")
shell.type("\\timing\r")
shell.expect("timing is on")
shell.type(ENDLESS + "\r")
shell.interrupt("cancelled")
shell.type("SELECT 'ke' || 'pt' AS h;\r")
shell.expect(r"\| kept \|")
shell.expect(r"time: [0-9.]+ ms")
assert shell.end() == 0

shell = Shell()
shell.expect("signaldb> ")
# The one before, once more.
shell.type("\x10\r")
shell.expect(r"\| kept \|")
assert shell.end() == 0
with open(os.environ["SIGNALDB_HISTORY"]) as history:
    kept = history.read()
assert "SELECT 40 +\\n2 AS answer;" in kept, kept
assert os.stat(os.environ["SIGNALDB_HISTORY"]).st_mode & 0o077 == 0, "others may read the history"
print("the shell does what it is told")
