"""The benchmark's report: a page with a table per case, and a bar chart."""

from pathlib import Path

from ddpm.plots.numbers import number, percent, table
from ddpm.plots.style import BLUE, ORANGE, PALETTE, figure

COLOURS = {"ours": BLUE, "ours, compiled": PALETTE[5], "diffusers": ORANGE, "denoising-diffusion-pytorch": PALETTE[2]}


def software(machine: dict) -> str:
    """Returns the versions of Python and of the libraries."""
    return ", ".join(f"{name} {version}" for name, version in {"Python": machine["python"], **machine["versions"]}.items())


def page(report: dict, picture: str) -> str:
    """Returns the report of `peers` in Markdown."""
    machine, top = report["machine"], report["ceiling"]
    where = f"{machine['gpu']}, host " if "gpu" in machine else ""
    parts = [
        f"# Speed on {machine.get('gpu') or machine['cpu']}",
        f"{where}{machine['cpu']}, {machine['cpus']} CPUs, {machine['threads']} threads; {software(machine)}.",
        f"![time of the others over ours]({picture})",
        f"The ceiling is {number(top['flops'] / 1e12)} TFLOP/s in {top['dtype']}: the best of some large matrix products and 3x3 "
        f"convolutions in the same run ({top['of']}). Settings of each library: "
        "`tests/benchmarks/contestants.py`. Times are medians over rounds in which all take turns; a ratio is taken within each "
        "round, with its quartiles in brackets. FLOPs are those executed in convolutions and matrix products.",
    ]
    parts += [f"{name} was not installed and is left out." for name in report["left_out"]]
    for case in report["cases"]:
        parts += [f"## {title(case)}", _layout(case), _case_table(case)]
        parts += [f"{name}: {reason}." for name, reason in case["failed"].items()]
    return "\n\n".join(parts) + "\n"


def title(case: dict) -> str:
    """Returns a title such as: Training, 32x32, 64 channels, batch 32."""
    steps = f", {case['steps']} DDIM steps" if case["steps"] else ""
    height, width, _ = case["shape"]
    return f"{case['kind'].capitalize()}, {height}x{width}, {case['channels']} channels, batch {case['batch']}{steps}"


def _layout(case: dict) -> str:
    sides = [f"{case['shape'][0] >> level}x{case['shape'][1] >> level}" for level in case["attention"]]
    attention = " and ".join([*(f"at {side}" for side in sides), "in the middle"])
    widths = ", ".join(str(case["channels"] * mult) for mult in case["mults"])
    return f"Widths {widths}; {case['blocks']} blocks per level; attention {attention}; {case['rounds']} rounds."


def _case_table(case: dict) -> str:
    baselines = [c["name"] for c in case["contestants"] if c["name"].startswith("ours")]
    header = ["", "images/s", *(f"time / {name}" for name in baselines), "parameters", "GFLOP per image", "of the ceiling"]
    on_gpu = any(c["peak_memory_gib"] is not None for c in case["contestants"])
    rows = []
    for c in case["contestants"]:
        ratios = [_ratio(c["slower_than"].get(name)) for name in baselines]
        row = [c["name"], number(c["images_per_second"]), *ratios, number(c["parameters"]), number(c["gflops_per_image"])]
        rows.append([*row, percent(c["share_of_ceiling"]), *([number(c["peak_memory_gib"]) + " GiB"] if on_gpu else [])])
    return table([*header, *(["peak memory"] if on_gpu else [])], rows)


def _ratio(values: dict[str, float] | None) -> str:
    return "1" if values is None else f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"


def ratio_chart(path: Path, report: dict) -> None:
    """Writes a bar chart of the time of the others over ours, per case: medians with quartiles."""
    cases = report["cases"]
    names = [name for name in COLOURS if any(c["name"] == name for case in cases for c in case["contestants"]) and name != "ours"]
    with figure(path, 1, 13, 3.8) as (ax,):
        for i, name in enumerate(names):
            for j, case in enumerate(cases):
                ratio = next((c["slower_than"]["ours"] for c in case["contestants"] if c["name"] == name), None)
                if ratio is None:
                    continue
                height = ratio["median"]
                x = j + (i - (len(names) - 1) / 2) * 0.8 / len(names)
                spread = [[height - ratio["low"]], [ratio["high"] - height]]
                ax.bar(x, height, 0.76 / len(names), color=COLOURS[name], yerr=spread, label=name if j == 0 else None)
                ax.text(x, ratio["high"], f"{height:.2f}", ha="center", va="bottom", fontsize=8)
        ax.axhline(1, color="black", linewidth=0.8)
        labels = [", ".join(parts[:2]) + "\n" + "\n".join(parts[2:]) for parts in (title(case).split(", ") for case in cases)]
        ax.set_xticks(range(len(cases)), labels, fontsize=8)
        ax.set_title("Time for the same work, ours = 1 (above 1: ours is faster; whiskers: quartiles over rounds)")
        ax.margins(y=0.12)
        ax.grid(axis="x", visible=False)
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
