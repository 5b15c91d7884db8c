"""One room per command: its options as a dataclass, and ``main(argv) -> exit code``, a few calls into the rooms below."""
