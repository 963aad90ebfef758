"""Which GPUs a process works on: those that no other one of this user's holds.

Snakemake counts GPUs (`--resources gpu=4`), but tells no job which; without this all would take
the first. A card is held by a lock of the operating system's, so that it is free again however
its holder ends.
"""

import contextlib
import fcntl
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from mmnet.runtime.errors import MMNetError
from mmnet.runtime.files import writing
from mmnet.runtime.progress import say

LOCKS = Path(f"/tmp/mmnet-cards-{os.getuid()}")
"""Of all this user's checkouts. Not in TMPDIR: shells and queues set that differently."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
HELD = "MMNET_HELD_CARDS"
"""Set for the holder's children: these cards are theirs too."""
ASK_EVERY = 1.0  # seconds


@contextlib.contextmanager
def take(count: int) -> Iterator[list[str]]:
    """Hold `count` GPUs, waiting until as many are free, and let CUDA see no others.

    Before CUDA is initialised, since it reads the environment once. Where CUDA_VISIBLE_DEVICES is
    set, by Slurm or by a user, only those are taken. Children of a holder, as torchrun's, get the
    cards that it holds. Yields their UUIDs; none where nvidia-smi knows of no GPU.

    Raises:
        MMNetError: there are GPUs, but fewer than `count`.
    """
    if HELD in os.environ:
        yield os.environ[HELD].split(",")
        return
    known = visible()
    if not known:
        yield []
        return
    if len(known) < count:
        raise MMNetError(
            f"{count} GPUs are asked for, and {len(known)} are here ({', '.join(known)}). Ask for "
            f"fewer, or set {VISIBLE} to more."
        )
    with _held(known, count) as cards, _environment(cards):
        say(f"on {', '.join(cards)}")
        yield cards


def visible() -> list[str]:
    """Return the UUIDs of the GPUs that CUDA may use here, in its order."""
    installed = _installed()
    given = os.environ.get(VISIBLE)
    if given is None:
        return installed
    cards = []
    for name in filter(None, map(str.strip, given.split(","))):
        # A number, as nvidia-smi counts; a UUID, or the beginning of one; a part of a card (MIG).
        if name.isdecimal():
            matches = installed[int(name) :][:1]
        else:
            matches = [card for card in installed if card.startswith(name)]
            matches = matches or [name] * name.startswith("MIG-")
        if len(matches) != 1:
            break  # as CUDA: what follows an unknown one is not seen
        cards += matches
    return list(dict.fromkeys(cards))


def _installed() -> list[str]:
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return re.findall(r"^GPU \d+: .*\(UUID: (GPU-[\w-]+)\)", listed, flags=re.MULTILINE)


@contextlib.contextmanager
def _held(known: list[str], count: int) -> Iterator[list[str]]:
    with contextlib.ExitStack() as locks:
        with writing(LOCKS):
            LOCKS.mkdir(mode=0o700, exist_ok=True)
            cards = _lock(known, count, locks)
        if not cards:
            say(
                f"waiting for {count} of {len(known)} GPUs: other processes hold them "
                f"(fuser -v {LOCKS}/* shows which)"
            )
        while not cards:
            time.sleep(ASK_EVERY)
            cards = _lock(known, count, locks)
        yield cards


def _lock(known: list[str], count: int, locks: contextlib.ExitStack) -> list[str]:
    """Lock `count` of the cards, or none: else two that want two could wait for each other."""
    cards = []
    with contextlib.ExitStack() as attempt, (LOCKS / "asking").open("a") as asking:
        fcntl.flock(asking, fcntl.LOCK_EX)  # one at a time, or two could thwart each other for ever
        for card in known:
            file = (LOCKS / card.replace("/", "_")).open("a")  # parts of cards had slashes
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            attempt.enter_context(file)
            cards.append(card)
            if len(cards) == count:
                locks.push(attempt.pop_all())
                return cards
    return []


@contextlib.contextmanager
def _environment(cards: list[str]) -> Iterator[None]:
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = os.environ[HELD] = ",".join(cards)
    try:
        yield
    finally:
        del os.environ[HELD], os.environ[VISIBLE]
        if before is not None:
            os.environ[VISIBLE] = before
