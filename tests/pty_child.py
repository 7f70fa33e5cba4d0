"""A program on a terminal of its own: type at it, read what it shows, look at the terminal's state."""

import errno
import fcntl
import os
import pty
import re
import resource
import select
import signal
import struct
import termios
import time

# What a terminal that nobody has touched looks like: lines, echo, signals.
SANE = termios.ICANON | termios.ECHO | termios.ISIG

HAS_LIBEDIT = os.environ.get("DT_TEST_LIBEDIT", "1") == "1"
TIMEOUT = float(os.environ.get("DT_TEST_TIMEOUT", "60"))


class Terminal:
    """`stderr`: a path that standard error goes to instead of the terminal."""

    def __init__(self, args, columns=80, env=None, stderr=None, preexec=None):
        self.text = ""
        self.raw = b""
        self.status = None
        self.master, self.slave = pty.openpty()
        self.resize(columns)
        self.before = termios.tcgetattr(self.slave)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.master)
                os.setsid()
                fcntl.ioctl(self.slave, termios.TIOCSCTTY, 0)
                for fd in (0, 1, 2):
                    os.dup2(self.slave, fd)
                if stderr:
                    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the suite may run under nohup
                if preexec:
                    preexec()
                os.execve(args[0], args, env if env is not None else dict(os.environ))
            finally:
                os._exit(126)

    def resize(self, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def pump(self, seconds):
        """Reads what comes within that time; False at the end of the program."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if not ready:
            return self.status is None
        try:
            data = os.read(self.master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""
        self.raw += data
        self.text = self.raw.decode(errors="replace")
        return bool(data)

    def expect(self, pattern, start=0):
        """Waits until what is shown from `start` on matches; returns where the match ends."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            found = re.compile(pattern, re.S).search(self.text, start)
            if found:
                return found.end()
            if time.monotonic() > deadline or not self.alive():
                self.pump(0.1)
                found = re.compile(pattern, re.S).search(self.text, start)
                if found:
                    return found.end()
                raise AssertionError("%r does not come after %r" % (pattern, self.text[start:][-400:]))
            self.pump(0.05)

    def ready(self, start=0):
        """Waits for a prompt that takes keys: libedit shows it first and then takes the terminal
        over, and Ctrl-D in between is lost."""
        end = self.expect(r"> $", start)
        deadline = time.monotonic() + TIMEOUT
        while HAS_LIBEDIT and not self.raw_mode() and time.monotonic() < deadline:
            time.sleep(0.005)
        return end

    def type(self, text):
        os.write(self.master, text if isinstance(text, bytes) else text.encode())

    def alive(self):
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is None

    def signal(self, number):
        os.kill(self.pid, number)

    def raw_mode(self):
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON

    def wait(self):
        """The exit code, or minus the signal."""
        deadline = time.monotonic() + TIMEOUT
        while self.alive():
            self.pump(0.05)
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError("the program does not end; it shows %r" % self.text[-400:])
        self.pump(0.05)
        return os.waitstatus_to_exitcode(self.status)

    def sane(self):
        """Whether the terminal is as it was."""
        now = termios.tcgetattr(self.slave)
        return now[:6] == self.before[:6] and now[3] & SANE == SANE

    def close(self):
        if self.alive():
            self.signal(signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.slave)
        os.close(self.master)
