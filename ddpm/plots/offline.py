"""Makes `dvc plots` write pages that need no network.

Run `python -m ddpm.plots.offline` once in each clone, and again if .dvc/tmp was removed. By default these pages load the chart
library from the web. DVC's setting `plots.html_template` names another template; this one contains the library, from the package
vl-convert-python.
"""

import subprocess
import sys
from pathlib import Path

from ddpm.core.files import InputError, write_text
from ddpm.core.stage import run_stage

DVC = Path(".dvc")
PAGE = Path("tmp/offline_plots.html")  # relative to .dvc, in the folder of DVC's temporary files, which Git ignores
# Placeholders of DVC. Without {scripts} it adds no link to the web.
PLOTS, PLACEHOLDERS = "{plot_divs}", ("{scripts}", "{plot_divs}", "{refresh_tag}")


def page(bundle: str) -> str:
    """Returns a page template for DVC that contains a JavaScript `bundle` of Vega, Vega-Lite and Vega-Embed."""
    # HTML ends a script at its end tag, also inside a string, and DVC fills its placeholders anywhere in the text.
    bundle = bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    for placeholder in PLACEHOLDERS:
        bundle = bundle.replace(placeholder, "{ " + placeholder[1:])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Plots</title>\n'
        "<style>table { border-spacing: 15px; } img { max-width: 100%; }</style>\n"
        f'<script>\n{bundle}\n</script>\n</head>\n<body>\n{PLOTS}\n</body>\n</html>\n'
    )  # fmt: skip


def main() -> None:
    """Writes the template and names it in .dvc/config.local. Raises InputError outside a DVC project, or without the package."""
    if not DVC.is_dir():
        raise InputError("not found; run this in the root of the project", key=".dvc")
    try:
        import vl_convert
    except ImportError:
        raise InputError("vl-convert-python is not installed; install it with `pip install vl-convert-python`") from None
    # The newest Vega-Lite, which matches the bundled Vega; it also draws DVC's charts, which are written for version 5.
    write_text(DVC / PAGE, page(vl_convert.javascript_bundle()))
    command = ["config", "--local", "plots.html_template", PAGE.as_posix()]
    result = subprocess.run([sys.executable, "-m", "dvc", *command], capture_output=True, text=True, check=False)
    if result.returncode:
        raise InputError(f"`dvc {' '.join(command)}` failed: {(result.stderr.strip() or 'no reason given').splitlines()[-1]}")
    print(f"`dvc plots show` and `dvc plots diff` now write pages that need no network ({DVC / PAGE}, set in {DVC}/config.local)")
    print("to undo this: dvc config --local --unset plots.html_template")


if __name__ == "__main__":
    run_stage(main)
