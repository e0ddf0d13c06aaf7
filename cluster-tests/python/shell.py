"""A person at a terminal: types into `signaldb sql`, reads what it shows, and comes back another day.

Binary, node and history come from the environment; the last line says whether all went as expected.
"""

import os
import pty
import re
import select
import termios
import time

DEADLINE = 60
# Where `termios.tcgetattr` has them.
LOCAL_FLAGS = 3
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
        """Types at a prompt: what came earlier would be lost with the line that Ctrl-C leaves."""
        self.wait_for_mode(edited=True)
        os.write(self.terminal, text.encode())

    def interrupt(self, pattern):
        """Ctrl-C, once the statement was taken: until then it would only leave the line."""
        self.wait_for_mode(edited=False)
        os.write(self.terminal, b"\x03")
        self.expect(pattern)

    def end(self):
        """Ctrl-D at a prompt, and the exit code."""
        self.type("\x04")
        until = time.monotonic() + DEADLINE
        while self.read(0.2):
            assert time.monotonic() < until, f"it does not end: {self.shown!r}"
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait_for_mode(self, edited):
        """Waits until lines are edited by the shell, or until keys are signals again; the terminal's own state says which."""
        until = time.monotonic() + DEADLINE
        while edited == bool(termios.tcgetattr(self.terminal)[LOCAL_FLAGS] & termios.ISIG):
            assert self.read(0.02) and time.monotonic() < until, f"no prompt, or no end of one: {self.shown!r}"


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
