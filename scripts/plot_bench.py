#!/usr/bin/env python3
"""Draws what dovetail bench and scripts/bench_peers measured.

    scripts/plot_bench.py -o FILE.png RESULT.json [RESULT.json ...]

A RESULT.json comes from `dovetail bench --curve ... -o json`, from `scripts/bench_peers --out`, or
from `dovetail bench --prompts ... -o json`. Curves give the time of a pass over its tokens, with the
floor; prompts the acceptance at each position of the draft. matplotlib is needed: pip install
matplotlib.
"""

import json
import sys


def curves(result):
    """[(label, [(m, ms)])], one for each program, instruction set and depth."""
    found = {}
    for row in result["curve"]:
        who = row.get("who")
        if not who:
            who = f"dovetail {row['isa']}"
            if len({r["n_depth"] for r in result["curve"]}) > 1:
                who += f", depth {row['n_depth']}"
        if row["ms"] is not None:
            found.setdefault(who, []).append((row["m"], row["ms"]))
    return [(who, sorted(points)) for who, points in found.items()]


def draw_curves(axes, results):
    sizes, floors = set(), []
    for result in results:
        for who, points in curves(result):
            x, y = zip(*points)
            sizes.update(x)
            axes.plot(x, y, marker="o", label=who, linestyle="-" if "dovetail" in who else "--")
        if result.get("floor_ms"):
            floors.append(result["floor_ms"])
    if floors:
        axes.axhline(min(floors), color="black", linestyle=":",
                     label=f"reading the weights once, {min(floors):.0f} ms")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(sizes), [str(m) for m in sorted(sizes)])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens in a pass, m")
    axes.set_ylabel("T(m), ms")
    facts = results[0]
    axes.set_title(f"{facts.get('model', '')}\n{facts.get('machine', '')}", fontsize=9)
    axes.legend(fontsize=8)


def draw_acceptance(axes, rows):
    for row in rows:
        y = row["acceptance_per_position"]
        axes.plot(range(1, len(y) + 1), y, marker="o",
                  linewidth=2.5 if row["category"] == "all" else 1,
                  label=f"{row['category']}, {row['mean_acceptance_length']:.2f} tokens a step")
    axes.set_ylim(0, 1)
    axes.set_xlabel("position in the draft")
    axes.set_ylabel("accepted in this share of the steps")
    axes.set_title(f"{rows[0]['model']}, draft {rows[0]['draft']}\n{rows[0]['machine']}",
                   fontsize=9)
    axes.legend(fontsize=8)


def main():
    arguments = sys.argv[1:]
    if len(arguments) < 3 or arguments[0] != "-o":
        print(__doc__.strip())
        return 2
    try:
        import matplotlib
    except ImportError:
        print("plot_bench: matplotlib is missing: pip install matplotlib", file=sys.stderr)
        return 1
    matplotlib.use("Agg")
    from matplotlib import pyplot
    with_curve, rows = [], []
    try:
        for path in arguments[2:]:
            with open(path, encoding="utf-8") as file:
                result = json.load(file)
            if isinstance(result, dict) and result.get("curve"):
                with_curve.append(result)
            elif isinstance(result, list):
                rows += [row for row in result if row.get("acceptance_per_position")]
    except (OSError, ValueError) as error:
        print(f"plot_bench: {path}: {error}", file=sys.stderr)
        return 1
    panels = [(draw, data) for draw, data in ((draw_curves, with_curve), (draw_acceptance, rows))
              if data]
    if not panels:
        print("plot_bench: no curve and no acceptance in these files", file=sys.stderr)
        return 1
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(6.4 * len(panels), 4.4),
                                       squeeze=False)
    for axes, (draw, data) in zip(all_axes[0], panels):
        draw(axes, data)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(arguments[1], dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
