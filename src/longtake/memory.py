"""The saved form of a watched video: one safetensors file, whole or absent.

Layout: tensors ``features``, ``position``, ``seconds``, ``weight``; everything else in the header's metadata, under
``format`` (what the file is), ``version`` (of this layout) and ``header`` (JSON). A file is written beside its target
and renamed, so a reader never sees half of one, and of two writers the later one wins with a whole file.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtake.outputs import check_output, replaced
from longtake.types import LongtakeError, Memory, Provenance, Sampling, VisualTokens

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_target", "is_memory", "load_memory", "read_tensors", "save_memory", "write_tensors"]

VERSION = 1
FORMAT = "longtake.memory"
_LONGEST_HEADER_BYTES = 100_000_000  # the safetensors format's own limit


def save_memory(memory: Memory, path: str | os.PathLike[str]) -> None:
    """Write the memory to one file, replacing a memory that stood there in one step.

    Raises LongtakeError, and leaves no new file, when the folder is missing, not writable or full, and when the file is
    there and is no memory.
    """
    check_target(Path(path))
    header = {
        "grid": memory.tokens.grid,
        "group_seconds": memory.group_seconds,
        "start_seconds": memory.start_seconds,
        "provenance": dataclasses.asdict(memory.provenance),
        "group_stops": memory.group_stops,
    }
    write_tensors(Path(path), token_tensors(memory.tokens), FORMAT, header)


def load_memory(path: str | os.PathLike[str]) -> Memory:
    """Read a memory back, equal to what was saved; no model is needed.

    Raises LongtakeError for a missing, damaged or foreign file and for another version of the layout.
    """
    tensors, header = read_tensors(Path(path), FORMAT)
    with damage_in_one_line(Path(path)):
        provenance = dict(header["provenance"])
        sampling = dict(provenance["sampling"])
        if sampling["at_seconds"] is not None:
            sampling["at_seconds"] = tuple(sampling["at_seconds"])
        provenance |= {"sampling": Sampling(**sampling), "warnings": tuple(provenance["warnings"])}
        return Memory(
            tokens=tokens_of(tensors, header["grid"]),
            group_seconds=header["group_seconds"],
            start_seconds=header["start_seconds"],
            provenance=Provenance(**provenance),
            group_stops=None if header.get("group_stops") is None else tuple(header["group_stops"]),
        )


def check_target(path: Path) -> None:
    """Refuse a file that cannot be written, and one that is there and is no memory; before a video is watched, too."""
    check_output(path)
    if path.exists() and _form(path) != FORMAT:
        raise LongtakeError(f"{path} is there and is no memory; give another name, or remove that file first")


def _form(path: Path) -> str | None:
    """What the header of a file says it is, truncated or not; None where it says nothing."""
    if not is_memory(path):
        return None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            form: str | None = json.loads(file.read(length))["__metadata__"]["format"]
        except (ValueError, KeyError, TypeError):
            return None
    return form


def is_memory(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as safetensors files do, which no video does; a truncated memory still counts as one."""
    path = Path(path)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER_BYTES


def token_tensors(tokens: VisualTokens) -> dict[str, Tensor]:
    """The tensors of ``tokens`` by name, on the CPU and contiguous, as a file wants them."""
    named = {name: getattr(tokens, name) for name in ("features", "position", "seconds", "weight")}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}


def tokens_of(tensors: Mapping[str, Tensor], grid: list[int]) -> VisualTokens:
    """The inverse of ``token_tensors``."""
    groups, rows, columns = grid
    named = {name: tensors[name] for name in ("features", "position", "seconds", "weight")}
    return VisualTokens(**named, grid=(groups, rows, columns))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], form: str, header: Mapping[str, Any]) -> None:
    """One versioned safetensors file, written beside ``path`` and renamed. Raises LongtakeError when it cannot be."""
    from safetensors.torch import save_file

    metadata = {"format": form, "version": str(VERSION), "header": json.dumps(header)}
    with replaced(path, sync=True) as part:
        save_file(dict(tensors), part, metadata)


def read_tensors(path: Path, form: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and header of a file that ``write_tensors`` wrote under the same ``form``."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise LongtakeError(f"{path} is not a file; write it first with: longtake watch VIDEO -o {path}")
    data = path.read_bytes()  # one open: safe_open opens by name again for the tensors, perhaps another file by then
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise LongtakeError(f"{path} is not a whole memory file ({error}); watch the video again") from error
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    _check_form(path, metadata, form)
    with damage_in_one_line(path):
        return tensors, json.loads(metadata["header"])


@contextmanager
def damage_in_one_line(path: Path) -> Iterator[None]:
    """A block that makes values of what a file holds; where they do not fit together the file is damaged.

    Raises LongtakeError then.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise LongtakeError(f"{path} has a damaged header ({error!r}); watch the video again") from error


def _check_form(path: Path, metadata: Mapping[str, str], form: str) -> None:
    if metadata.get("format") != form:
        raise LongtakeError(f"{path} is a safetensors file but not a {form} file; give one that longtake wrote")
    if metadata.get("version") != str(VERSION):
        raise LongtakeError(
            f"{path} has layout version {metadata.get('version')}, this longtake reads version {VERSION}; "
            "watch the video again or install the longtake that wrote it"
        )
