"""Imports the weights of a released model: verified to the last tensor, then written in our layout with provenance.

    python -m tools.import_weights --from wan2.1-1.3b --src DIRECTORY_OR_FILE --out weights/wan2.1-1.3b
    python -m tools.import_weights --from wan2.2-5b --src Wan-AI/Wan2.2-TI2V-5B-Diffusers/transformer --out weights/5b
    python -m tools.import_weights --from umt5-xxl --src DIRECTORY --out weights/umt5-xxl
    python -m tools.import_weights --from dreamzero-14b --src CHECKPOINT --out weights/dreamzero-14b

Prints every tensor with its shape, its dtype and its place in ours. A tensor too many, one too few, another shape or a
quantised dtype is refused by name, and nothing is written. `--src` may be the id of a repository on the hub, with a
folder in it, where huggingface_hub is installed. Files of PyTorch (.pt, .pth, .bin) are opened by torch's weights-only
loader alone.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from pathlib import Path

from wam.pretrained import imported
from wam.pretrained.loading import table
from wam.pretrained.provenance import read_provenance
from wam.pretrained.released import KINDS


def find_source(text: str) -> Path:
    """A local path as it is, or a folder of a repository on the hub after its download."""
    path = Path(text)
    if path.exists():
        return path
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)((?:/[\w.-]+)*)", text)
    if hub is None:
        raise FileNotFoundError(f"there is no {text}")
    try:
        import huggingface_hub
    except ImportError:
        raise FileNotFoundError(
            f"there is no {text}; if it is a repository on the hub, install huggingface_hub (the extra `pretrained`)"
        ) from None
    repository, folder = hub.group(1), hub.group(2).strip("/")
    wanted = [f"{folder}/{name}" if folder else name for name in ("*.safetensors", "*.json")]
    try:
        found = huggingface_hub.snapshot_download(repository, allow_patterns=wanted)
    except Exception as error:  # whatever the network and the hub raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(f"there is no {text}, and it could not be downloaded: {reason}") from None
    return Path(found) / folder


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="import_weights", description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="kind", required=True, choices=KINDS, help="which release it is")
    parser.add_argument("--src", required=True, help="file, directory, or OWNER/REPOSITORY[/FOLDER] on the hub")
    parser.add_argument("--out", required=True, type=Path, help="directory to write, which must not exist")
    args = parser.parse_args(argv)
    try:
        rows = imported.import_model(args.kind, find_source(args.src), args.out, named=args.src)
    except (ValueError, OSError) as error:
        sys.exit(f"import_weights: {error}")
    print(table(rows))
    count = sum(math.prod(row.shape) for row in rows)
    print(f"import_weights: {len(rows)} tensors, {count:,} parameters, into {args.out}")
    if left_out := read_provenance(args.out)["left_out"]:
        parts = ", ".join(sorted({".".join(name.split(".")[:2]) for name in left_out}))
        print(f"import_weights: {len(left_out)} tensors left out, of {parts}: frozen there, import them by themselves")


if __name__ == "__main__":
    main(sys.argv[1:])
