"""The library's errors speak to people at a command line; here they are put into the words of the window."""

import re

from napari_emsvae.training.settings import settings

BUTTONS = {
    "--where": "the condition",
    "--project-dir": "Locate stack\N{HORIZONTAL ELLIPSIS}",
    "--out": "run folder",
    "--force": "\N{LEFT DOUBLE QUOTATION MARK}replace the run\N{RIGHT DOUBLE QUOTATION MARK} in the Train form",
    "--resume": "\N{LEFT DOUBLE QUOTATION MARK}go on with the run\N{RIGHT DOUBLE QUOTATION MARK} in the Train form",
    "--k": "the number of classes",
}
"""What does the same in the window as a flag does on the command line."""

SENTENCES = (
    (
        r"(?:run|finish it with|start it anew with) `?emsvae train [^`]*--resume`?(?: to write it again)?",
        "go on with the run in the Train form, which writes it again",
    ),
    (r"train anew with --force", "train on it again, in the Train form"),
    (r"start it anew with --force instead of --resume", "train again, in the Train form"),
    (r"run `emsvae classes [^`]*` again", "make the classes again, on the page Classes"),
    (r"use --force to replace it", "choose another name"),
)
"""Whole pieces of advice that read otherwise in a window."""


def in_the_window(text: str) -> str:
    """A message with what it says of flags said of buttons and fields."""
    for pattern, words in SENTENCES:
        text = re.sub(pattern, words, text)
    fields = {
        setting.flag: f"\N{LEFT DOUBLE QUOTATION MARK}{setting.label}\N{RIGHT DOUBLE QUOTATION MARK}"
        for setting in settings().values()
    }

    def named(found: re.Match[str]) -> str:
        flag = found.group(0)
        return BUTTONS.get(flag) or fields.get(flag) or flag.removeprefix("--").replace("-", " ")

    return re.sub(r"(?<![\w-])--[a-z][a-z0-9-]*", named, text)
