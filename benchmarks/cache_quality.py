"""What a packed KV cache costs in quality: KL divergence from the fp16 cache of the same model, for every usual pair.

    python -m benchmarks.cache_quality [-m MODEL] [--text FILE] [--tokens N] [--json FILE] [--plot FILE.svg]

The text is Python's own documentation as the interpreter carries it (pydoc_data.topics), unless one is given. A row is
what `python -m exllama.eval kl -m MODEL --cache KIND --text FILE --context N --tokens N` measures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from exllama import eval as eval_command
from exllama.cache.storage import CacheLayer, cache_nbytes, parse_kind
from exllama.ops import PAGE_SIZE

KINDS = ("q8", "q6", "q5", "q4", "k8v4", "k6v4", "k5v3", "k4v3", "k3v4", "q3", "k4v2", "k2v4", "q2")
Row = dict[str, Any]


def documentation() -> str:
    """English prose and code that every Python has: the help topics, about 700 KB."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def measure(model: str, kinds: Iterable[str], text: Path, context: int, tokens: int) -> list[Row]:
    """One evaluation per kind."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            out = Path(folder) / f"{kind}.json"
            words = ["kl", "-m", model, "--cache", kind, "--text", str(text), "--json", str(out)]
            eval_command.main([*words, "--context", str(context), "--tokens", str(tokens)])
            row = json.loads(out.read_text(encoding="utf-8"))
            rows.append({"bits_per_value": bits_per_value(kind), **row})
            print(line(rows[-1]), flush=True)
    return rows


def bits_per_value(kind: str) -> float:
    """Of keys and values on average, scales included."""
    layer = CacheLayer(num_kv_heads=1, head_dim=64)
    return 8 * cache_nbytes([layer], 1, kind) / (2 * PAGE_SIZE * layer.head_dim)


HEADER = "| cache | keys, values | bits per value | mean KL | median KL | 99.9 % KL | same top token |"
HEADER += "\n" + "|---" * 7 + "|"


def line(row: Row) -> str:
    """A row of the table."""
    bits = "{} and {} bits".format(*parse_kind(row["cache"]))
    numbers = f"{row['mean']:.5f} | {row['median']:.5f} | {row['percentile_99_9']:.3f} | {100 * row['same_top']:.1f} %"
    return f"| `{row['cache']}` | {bits} | {row['bits_per_value']:.1f} | {numbers} |"


def plot(rows: list[Row], path: Path) -> None:
    """Mean divergence over size."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "exllama"  # the same file for the same numbers
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows:
        keys, _ = parse_kind(row["cache"])
        point = (row["bits_per_value"], row["mean"])
        axes.plot(*point, "o", color="tab:red" if keys < 4 else "tab:blue")
        axes.annotate(row["cache"], point, (5, 4), textcoords="offset points", fontsize=9)
    axes.set_yscale("log")
    axes.set_xlabel("bits per value, scales included (fp16: 16)")
    axes.set_ylabel("mean KL divergence from the fp16 cache (nats)")
    axes.set_title("Quality of packed caches (red: keys below 4 bits)")
    axes.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--json", type=Path, help="write one JSON object a line")
    parser.add_argument("--from-json", type=Path, help="measure nothing, read what --json wrote")
    parser.add_argument("--plot", type=Path, help="draw an SVG file; needs the extra [plots]")
    arguments = parser.parse_args()
    print(HEADER)
    if arguments.from_json:
        rows = [json.loads(each) for each in arguments.from_json.read_text(encoding="utf-8").splitlines()]
        print("\n".join(line(row) for row in rows))
    else:
        with tempfile.TemporaryDirectory() as folder:
            text = arguments.text or Path(folder) / "documentation.txt"
            if arguments.text is None:
                text.write_text(documentation(), encoding="utf-8")
            rows = measure(arguments.model, arguments.kinds.split(","), text, arguments.context, arguments.tokens)
    if arguments.json:
        arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if arguments.plot:
        plot(rows, arguments.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
