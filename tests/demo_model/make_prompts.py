"""Cut held-out prompts for the benchmarks from packages that the demo model was not trained on
(train.HELD_OUT).

In: the packages' sources as installed. Out: held_out_prompts.jsonl, one prompt a function or
method: its first lines.
"""

import ast
import json
from pathlib import Path

import click
import numpy as np
from train import held_out_files, read


def cuts(source: str) -> list[str]:
    """For each function of 6 lines or more: what leads to it, and its own beginning, cut before a
    line break.
    """
    lines, found = source.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 6:
            end = node.lineno + 2 + (node.end_lineno - node.lineno) // 3
            text = "".join(lines[max(0, end - 14) : end]).rstrip()
            if 200 <= len(text) <= 700 and text.isascii():
                found.append(text)
    return found


@click.command()
@click.option("--count", default=240, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(count, seed):
    pool = []
    for file, source in zip(held_out_files(), read(held_out_files()), strict=True):
        package = next(part for part in file.parts[file.parts.index("site-packages") + 1 :])
        pool += [(f"{package}/{file.stem}", text) for text in cuts(source)]
    chosen = np.random.default_rng(seed).permutation(len(pool))[:count]
    lines = [json.dumps({"id": f"{pool[i][0]}/{n}", "prompt": pool[i][1]}) for n, i in enumerate(chosen)]
    (Path(__file__).parent / "held_out_prompts.jsonl").write_text("\n".join(lines) + "\n")
    print(f"{len(lines)} prompts of {len(pool)}")


if __name__ == "__main__":
    main()
