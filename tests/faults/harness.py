"""What the campaign of faults tries, and what must hold after each try: see `cases` and `Case.judge`."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
SMALL = ("--epochs", "2", "--hidden", "16", "--encoder-hidden", "16", "--device", "cpu", "--z-dim", "2")
TRAIN = ("train", "sim/particles.star", "--out", "run", *SMALL, "--batch-size", "60", "--checkpoint-minutes", "0")
RESULTS = ("latents.csv", "particles.star", "metrics.csv")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | None
    """None where a signal ended it."""
    events: int | None
    signal: int
    text: str


class Server:
    """`server.py` in a process of its own."""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)

    def do(self, folder: Path, words: Sequence[str], **job: Any) -> list[Ended]:
        """Run a command in a folder; see `server.done` for what else a job may hold."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"folder": str(folder), "words": list(words), **job}) + "\n")
        self.process.stdin.flush()
        return [Ended(**found) for found in json.loads(self.process.stdout.readline())]

    def must(self, folder: Path, *words: str) -> Ended:
        """Run a command that has to end well."""
        (ended,) = self.do(folder, words)
        assert ended.code == 0, (words, ended)
        return ended


@dataclass
class Case:
    """A command, the folder that it starts from, and what must come of it at last."""

    name: str
    words: tuple[str, ...]
    start: Path
    """Copied for every try."""
    again: tuple[tuple[str, ...], ...]
    """What a user types after a failure: the first of these that does not refuse."""
    results: tuple[str, ...]
    """Files that are then byte for byte those of a command that nothing has disturbed."""
    expected: dict[str, str] = field(default_factory=dict)
    events: int = 0
    whole: tuple[str, ...] = ()
    """Files that are, right after the fault, as they were, as they are to be, or not there."""

    def learn(self, server: Server, scratch: Path) -> None:
        """Run undisturbed: how many events there are, and what comes of it."""
        folder = fresh(self.start, scratch)
        ended = server.must(folder, *self.words)
        assert ended.events is not None
        self.events = ended.events
        self.expected = {name: mark(folder / name) for name in (*self.results, *self.whole)}
        assert not leftovers(folder), leftovers(folder)

    def judge(self, server: Server, folder: Path, ended: Sequence[Ended]) -> list[str]:
        """What is wrong in a folder after a try; nothing if all promises hold."""
        wrong = []
        for end in ended:
            if "Traceback" in end.text or end.code == 1:
                wrong.append(f"traceback: {end.text[-600:]}")
            elif end.code not in (None, 0, 2) and not (end.code or 0) > 128:
                wrong.append(f"exit code {end.code}")
        wrong += self._inputs(folder, "after the fault")
        if (folder / "run" / "config.json").exists():
            (info,) = server.do(folder, ["info", "run"])
            if info.code != 0 and "damaged" not in info.text:
                wrong.append(f"info: {info.text[-300:]}")
            wrong += together(folder / "run")
        for name in self.whole:
            if mark(folder / name) not in (self.expected[name], mark(self.start / name), ""):
                wrong.append(f"{name} is half done after the fault")
        tried = []
        for words in self.again:
            (end,) = server.do(folder, words)
            tried.append(f"{' '.join(words[:1])}: {end.code} {end.text[-200:]}")
            if end.code == 0:
                break
        else:
            wrong.append(f"cannot go on: {tried}")
        wrong += self._inputs(folder, "at last")
        wrong += [
            f"{name} is not what it should be at last"
            for name in self.results
            if mark(folder / name) != self.expected[name]
        ]
        if (folder / "run").exists():
            wrong += together(folder / "run")
        wrong += [f"left over: {name}" for name in leftovers(folder)]
        return wrong

    def _inputs(self, folder: Path, when: str) -> list[str]:
        return [
            f"input {file.name} has changed {when}"
            for file in sorted((self.start / "sim").iterdir())
            if mark(file) != mark(folder / "sim" / file.name)
        ]


def together(run: Path) -> list[str]:
    """Where the parts of a run disagree: results, their STAR file, their classes."""
    there = [(run / name).is_file() for name in ("latents.csv", "particles.star", "results.json")]
    if (run / ".switch").exists():
        return ["a switch is pending"]
    if any(there) and not all(there):
        return [f"results are there in part: {there}"]
    wrong = []
    if (run / "metrics.csv").exists():
        epochs = [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]
        if epochs != [str(k + 1) for k in range(len(epochs))]:
            wrong.append(f"epochs in metrics.csv: {epochs}")
    if not any(there):
        return wrong
    lines = (run / "latents.csv").read_text().splitlines()
    names = lines[0].split(",")
    classes = 0
    if "class_number" in names:
        classes = max(int(line.split(",")[names.index("class_number")]) for line in lines[1:])
    made = run / "classes" / "classes.csv"
    in_folder = len(made.read_text().splitlines()) - 1 if made.exists() else 0
    text = (run / "particles.star").read_text()
    in_star = 0
    if "_rlnClassNumber" in text:
        column = next(int(line.split("#")[1]) for line in text.splitlines() if line.startswith("_rlnClassNumber")) - 1
        in_star = max(int(line.split()[column]) for line in text.splitlines() if "@" in line)
    if not classes == in_folder == in_star:
        wrong.append(f"classes: {classes} in latents.csv, {in_star} in particles.star, {in_folder} in classes/")
    return wrong


def leftovers(folder: Path) -> list[str]:
    """Temporary files, locks and switches."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if ".emsvae-" in path.name or path.name in (".switch", "lock.json")
    )


def mark(path: Path) -> str:
    """Of a file's bytes; empty where there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def fresh(start: Path, scratch: Path) -> Path:
    """A copy of a folder, in the place of the last one: at the same path always, which results may name."""
    folder = scratch / "try"
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(start, folder, symlinks=True)


def cases(server: Server, scratch: Path) -> dict[str, Case]:
    """Every command with the folder that it starts from."""
    bare, trained, classed = (scratch / name for name in ("bare", "trained", "classed"))
    bare.mkdir(parents=True)
    server.must(
        bare, "simulate", "hinge", "--out", "sim", "--particles", "200", "--box", "24", "--snr", "2", "--shift-px", "1"
    )
    place = fresh(bare, scratch)
    server.must(place, *TRAIN)
    shutil.copytree(place, trained)
    server.must(place, "classes", "run", "--k", "6", "--method", "kmeans")
    shutil.copytree(place, classed)
    resume = (*TRAIN[:4], "--resume", "--epochs", "4", "--checkpoint-minutes", "0")
    run = tuple(f"run/{name}" for name in RESULTS)
    exports = ("--star", "out.star", "--csv", "out.csv", "--aligned", "out.mrcs")
    selects = ("--where", "class_number < 3", "--out", "some.star", "--excluded", "others.star")
    forced = (*TRAIN, "--force", "--seed", "7")
    classes = ("classes", "run", "--k", "3", "--method", "kmeans")
    found = [
        Case("train", TRAIN, bare, ((*TRAIN[:4], "--resume"), TRAIN), run),
        Case("resume", resume, classed, (resume,), run),
        Case("force", forced, classed, (forced,), run),
        Case("classes", classes, classed, (classes,), (*run, "run/classes/classes.csv", "run/classes/classes.mrcs")),
        Case("export", ("export", "run", *exports), trained, (("export", "run", *exports, "--force"),), exports[1::2]),
        Case(
            "select",
            ("select", "run", *selects),
            classed,
            (("select", "run", *selects, "--force"),),
            (selects[3], selects[5]),
        ),
        Case("analyze", ("analyze", "run"), classed, (("analyze", "run"),), run[:2]),
    ]
    for case in found:
        if case.name in ("export", "select"):
            case.whole = case.results
        case.learn(server, scratch)
    return {case.name: case for case in found}


Judge = Callable[[Case, list[Ended], Path], list[str]]


def killed(server: Server, case: Case, at: int, scratch: Path) -> list[str]:
    """Kill a command at its n-th file event; what is wrong then."""
    folder = fresh(case.start, scratch)
    return case.judge(server, folder, server.do(folder, case.words, at=at))


def killed_after(server: Server, case: Case, seconds: float, scratch: Path) -> list[str]:
    """Kill a command after a time, wherever it is."""
    folder = fresh(case.start, scratch)
    return case.judge(server, folder, server.do(folder, case.words, kill_after_s=seconds))


def full(server: Server, case: Case, largest_file: int, scratch: Path) -> list[str]:
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    folder = fresh(case.start, scratch)
    return case.judge(server, folder, server.do(folder, case.words, largest_file=largest_file))


def beside(server: Server, case: Case, at: int, other: Sequence[str], scratch: Path) -> list[str]:
    """Stop a command at its n-th file event while another one runs to its end, then let it go on."""
    folder = fresh(case.start, scratch)
    ended = server.do(folder, case.words, at=at, signal="SIGSTOP", meanwhile=list(other))
    wrong = case.judge(server, folder, ended)
    if not any(end.code == 0 for end in ended):
        wrong.append(f"neither went well: {[(end.code, end.text[-200:]) for end in ended]}")
    return wrong
