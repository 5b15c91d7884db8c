"""Runs commands in children of its own, ends or stops them at chosen points, and says how they ended.

A process apart from the tests: it imports everything once and computes nothing itself, so that a child is there in a moment. It reads
one job a line (JSON) and answers with a line. Every file event of a child within its folder (a file opened for writing, a rename, a link,
a folder made or removed) is counted by Python's audit hooks; they come just before the event.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

EVENTS = {"os.rename", "os.remove", "os.link", "os.symlink", "os.mkdir", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """Counts the file events below a folder; kills or stops this process at one of them."""

    def __init__(self, folder: str, at: int | None, number: int) -> None:
        self.folder, self.at, self.number, self.count = folder, at, number, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = bool(flags & WRITING) if mode is None else any(letter in mode for letter in "wax+")
            if not writes:
                return
        elif event in EVENTS:
            path = args[0]
        else:
            return
        place = os.path.abspath(os.fsdecode(path)) if isinstance(path, str | bytes) else ""  # noqa: PTH100
        if not place.startswith(self.folder):
            return
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)
            time.sleep(0 if self.number == signal.SIGSTOP else 5)


def child(job: dict[str, Any], answer: int, output: int) -> None:
    """What a child does; never returns."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(job["folder"])
    from emspatialvae.analysis.report import run_figures
    from emspatialvae.cli import main as cli
    from emspatialvae.io import switch

    switch.WAIT_S = 0.3
    if not job.get("figures", False):
        run_figures.draw = one_picture
    if "largest_file" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["largest_file"], resource.RLIM_INFINITY))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    watch = Watch(job["folder"] + "/", job.get("at"), getattr(signal, job.get("signal", "SIGKILL")))
    sys.addaudithook(watch)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
    code = 1
    try:
        code = cli.main(job["words"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(answer, f"{code} {watch.count}".encode())
    os._exit(0)


def one_picture(run: Any, model: Any, images: Any, latents: Any, folder: Path) -> None:
    """In the place of the figures, which take most of the time of a tiny training: files of the same kinds."""
    from PIL import Image

    from emspatialvae.io.atomic import atomic_path

    for name in ("figures/learning_curve.png", "figures/poses.png", "consensus.mrc"):
        with atomic_path(folder / name) as temporary:
            Image.new("L", (8, 8)).save(temporary, "png")


class Running:
    """A child at work."""

    def __init__(self, job: dict[str, Any]) -> None:
        answer, give = os.pipe()
        output, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                child(job, give, say)
            finally:
                os._exit(1)
        os.close(give)
        os.close(say)
        self.answer, self.text = answer, bytearray()
        self.reader = threading.Thread(target=self._read, args=(output,), daemon=True)
        self.reader.start()

    def _read(self, output: int) -> None:
        while part := os.read(output, 1 << 16):
            self.text += part
        os.close(output)

    def stopped(self) -> bool:
        """Wait until it stops itself (True) or ends (False)."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        self.status = status
        return os.WIFSTOPPED(status)

    def end(self) -> dict[str, Any]:
        """Wait until it has ended."""
        if not hasattr(self, "status") or os.WIFSTOPPED(self.status):
            _, self.status = os.waitpid(self.pid, 0)
        self.reader.join(10)
        said = os.read(self.answer, 100).decode().split()
        os.close(self.answer)
        code, events = (int(said[0]), int(said[1])) if said else (None, None)
        number = os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0
        return {"code": code, "events": events, "signal": number, "text": self.text.decode(errors="replace")}


def done(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Carry out a job: one command, or (``meanwhile``) a second one while the first is stopped at a point."""
    first = Running(job)
    if "kill_after_s" in job:
        timer = threading.Timer(job["kill_after_s"], lambda: os.kill(first.pid, signal.SIGKILL))
        timer.start()
        ended = first.end()
        timer.cancel()
        return [ended]
    if "meanwhile" not in job:
        return [first.end()]
    second = None
    if first.stopped():
        second = Running({"folder": job["folder"], "words": job["meanwhile"]}).end()
        os.kill(first.pid, signal.SIGCONT)
    return [first.end(), *([second] if second else [])]


def main() -> None:
    """Import, then serve."""
    import emspatialvae.workflows.analyze
    import emspatialvae.workflows.classes
    import emspatialvae.workflows.select
    import emspatialvae.workflows.train  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(done(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
