"""What the site has besides docs/: top-level pages, notebooks, a config's fields."""

import pathlib
import runpy
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = pathlib.Path(__file__).parent
_TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
_CONFIG = """\
# Configuration

Every field of a config with its value in `configs/default.py`; another one is given as
`--config.FIELD=VALUE`. `--help` with a `--config` lists those of a data set.
"""


def on_files(files: Files, config: Any) -> Files:
    """Adds what is not in docs/."""
    for name in _TOP:
        files.append(File.generated(config, name, abs_src_path=str(_ROOT / name)))
    for path in sorted(_ROOT.glob("notebooks/*.ipynb")):  # to be downloaded
        name = f"notebooks/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    files.append(File.generated(config, "reference/config.md", content=_fields()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Leads links on, from where a page lies in a checkout to where on the site."""
    name = page.file.src_uri
    if "/" in name:
        return markdown
    return markdown.replace("](docs/" if name in _TOP else "](../", "](")


def _fields() -> str:
    """A table for every section of the default config."""
    default = runpy.run_path(str(_ROOT / "configs/default.py"))
    usage = runpy.run_path(str(_ROOT / "pixeldefend/usage.py"))
    tables: dict[str, list[str]] = {}
    for name, value, remark in usage["described"](default["get_config"]()):
        rows = tables.setdefault(name.partition(".")[0] if "." in name else "", [])
        rows.append(f"| `{name}` | `{value}` | {remark} |")
    page = [_CONFIG]
    for section, rows in sorted(tables.items(), key=lambda table: table[0] != ""):
        if section:
            page += [f"\n## {section}\n", default[f"_{section}"].__doc__]
        page += ["\n| field | value | |\n|---|---|---|", *rows]
    return "\n".join(page)
