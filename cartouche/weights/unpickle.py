"""The one place where a pickle is opened: a process of its own, which writes the numbers it finds to its output.

    python -m cartouche.weights.unpickle CHECKPOINT MEMORY SECONDS BYTES > model.safetensors

`convert.py` starts it. torch reads with `weights_only`, which knows the few classes that tensors need; should that ever
be got round, the process has no network, and so much memory, time and room and no more. Whatever Python announces (its
audit events) of starting something, importing, or writing elsewhere than to its output ends it. The last line on stderr
is JSON: what was found, or why it was refused.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from cartouche.config import CartoucheError
from cartouche.weights import safetensors

STATES = ("state_dict", "model_state_dict", "params_ema", "params", "model", "module")
"""Where training programs keep the weights among other things."""

EMBEDDING = {"string_to_param": "emb_params"}
"""The vectors of a textual inversion, and what they are called in a safetensors file."""

FORBIDDEN = (
    *("import", "sqlite3."),
    *("socket.", "subprocess.", "ctypes.", "shutil.", "pty.", "pickle.find_class", "os.system", "os.exec", "os.fork"),
    *("os.posix_spawn", "os.spawn", "os.kill", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link"),
    *("os.symlink", "os.truncate", "os.chmod", "os.chown", "os.putenv", "os.unsetenv", "webbrowser."),
)
NEW_USER, NEW_NET = 0x10000000, 0x40000000  # of unshare(2)
REFUSED = 3


def main(path: str, memory: str, seconds: str, room: str) -> int:
    """Write the tensors of a checkpoint to stdout. memory: bytes above what torch takes; room: bytes to write."""
    give_up_network()
    limit("RLIMIT_CPU", int(seconds))
    limit("RLIMIT_FSIZE", int(room))
    limit("RLIMIT_CORE", 0)
    import torch
    import torch.utils.serialization.config  # torch.load wants it, and nothing is imported from now on

    limit("RLIMIT_AS", int(memory) + _mapped())
    sys.addaudithook(forbid)
    try:
        tensors, left = weights_of(torch.load(path, map_location="cpu", weights_only=True))
        safetensors.put(sys.stdout.buffer, tensors, {"format": "pt"})
        sys.stdout.buffer.flush()
    except (Exception, MemoryError) as error:
        _say(error=reason(error))
        return REFUSED
    _say(tensors=len(tensors), parameters=sum(one.numel() for one in tensors.values()), left=left)
    return 0


def weights_of(loaded: Any) -> tuple[dict[str, Any], list[str]]:
    """The named tensors of what a checkpoint held, and the names of all that is left out. CartoucheError for none."""
    import torch

    if not isinstance(loaded, Mapping):
        raise CartoucheError(f"it holds a {type(loaded).__name__}; wanted names and tensors")
    inside = next((name for name in (*STATES, *EMBEDDING) if isinstance(loaded.get(name), Mapping)), None)
    states = loaded if inside is None else loaded[inside]
    found = {name: one for name, one in states.items() if isinstance(name, str) and isinstance(one, torch.Tensor)}
    left = [
        str(name) for name in [*([] if inside is None else loaded), *states] if name not in found and name != inside
    ]
    if not found:
        raise CartoucheError("it holds no tensors")
    if inside in EMBEDDING:
        if len(found) > 1:
            raise CartoucheError(f"it holds {len(found)} embeddings; wanted one")
        found = dict.fromkeys([EMBEDDING[inside]], next(iter(found.values())))
    return found, left


def forbid(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook under which nothing is started, sent, moved or written: the process ends, past every `except`."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes or event.startswith(FORBIDDEN):
        _say(error=f"it tried {event}: it is an attack")
        os._exit(REFUSED)


def reason(error: BaseException) -> str:
    """Why a checkpoint was refused, in one line, without torch's advice to trust it."""
    if isinstance(error, CartoucheError):
        return str(error)
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return "it wants more memory than a checkpoint of its size has use for"
    if named := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it holds {named[1]}, which is code and not numbers"
    return f"torch cannot read it as numbers alone ({type(error).__name__})"


def give_up_network() -> None:
    """Leave the network, where the system lets a process do so; the audit hook stands in the way as well."""
    with suppress(OSError, AttributeError):
        unshare = ctypes.CDLL(None).unshare
        if unshare(NEW_NET):
            unshare(NEW_USER | NEW_NET)


def limit(name: str, value: int) -> None:
    """Take no more than `value` of something, where the system counts it."""
    with suppress(ImportError, AttributeError, ValueError, OSError):
        import resource

        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _mapped() -> int:
    """The bytes of address space that are taken already; a guess where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 16 << 30


def _say(**fields: Any) -> None:
    sys.stderr.write(f"\n{json.dumps(fields)}\n")
    sys.stderr.flush()


def _run() -> NoReturn:
    sys.exit(main(*sys.argv[1:5]))


if __name__ == "__main__":
    _run()
