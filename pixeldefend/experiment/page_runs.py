"""What a page shows of a run besides its rows: images, histograms and ROC curves.

All is read from the files that modes leave in a workdir, as of somebody else.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from pixeldefend.density import likelihood
from pixeldefend.experiment import data, files, foreign, page, page_charts, page_images
from pixeldefend.experiment.grid import CLEAN, Adversary, Pipeline
from pixeldefend.experiment.page_images import Strip
from pixeldefend.experiment.page_rows import is_measured, label
from pixeldefend.experiment.rows import WORST
from pixeldefend.experiment.store import Store
from pixeldefend.experiment.workbench import slug

_MOST = 2**28  # bytes of an array; more is not worth a few small pictures
_PURIFY = "purify"
_STAGES = {"clean": "clean", "perturbed": "attacked", "purified": "purified"}


class _TooLarge(Exception):
    """An array has more bytes than are read for a few pictures."""


def _check(headers: Mapping[str, foreign.Header]) -> None:
    for dtype, shape in headers.values():
        if int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > _MOST:
            raise _TooLarge


def _arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """All arrays of a file; none if there is no such file, or it is too large.

    Raises:
      ValueError: it cannot be read; the message names it.
    """
    if not path.exists():
        return {}
    try:
        return foreign.read_arrays(path, None, _check)
    except _TooLarge:
        return {}


def strips(folder: epath.Path, rows: Sequence[dict]) -> list[Strip]:
    """Images of a workdir at their stages; none where it keeps none.

    Args:
      folder: the workdir.
      rows: its.

    Raises:
      ValueError: a file cannot be read.
    """
    measured = [row for row in rows if is_measured(row)]
    found = list(_of_purify(folder, measured)) or list(_of_attack(folder, measured))
    return found or list(_of_table(folder, measured))


def _named(folder: epath.Path, *names: str) -> Iterator[dict[str, np.ndarray]]:
    """The files of a folder that have arrays of these names."""
    for path in files.entries(folder):
        if path.suffix == ".npz" and set(names) <= (found := _arrays(path)).keys():
            yield found


def _classes(rows: Sequence[dict]) -> Sequence[str]:
    known = {row.get("dataset", "") for row in rows}
    return data.CLASS_NAMES.get(known.pop(), ()) if len(known) == 1 else ()


def _title(row: dict) -> str:
    bound = "" if row["eps_attack"] is None else f", ε {row['eps_attack']:g}"
    return f"{row['attack'].upper()}{bound}, on {row['classifier']}"


def _of_purify(folder: epath.Path, rows: list[dict]) -> Iterator[Strip]:
    """Of `--mode=purify`: its one file of images."""
    for found in _named(folder / "purified", "clean", "images", "purified"):
        stages = {"clean": found["clean"], "purified": found["purified"]}
        if not np.array_equal(found["clean"], found["images"]):
            stages = {"clean": found["clean"], "attacked": found["images"]} | stages
        told = _arrays(folder / "predictions.npz")
        guesses = {_STAGES[k]: v for k, v in told.items() if k in _STAGES}
        attacked = [row for row in rows if row["attack"] != CLEAN]
        last = rows[-1] if rows else {}
        title = _title(attacked[0]) if attacked else "images as given, and purified"
        threats = {"purified": label(last)} if last else {}
        if attacked:
            threats = {"attacked": label(attacked[0])} | threats
        yield Strip(
            title,
            threats,
            _in_order(stages),
            guesses,
            found.get("labels"),
            _classes(rows),
        )


def _in_order(stages: dict[str, Any]) -> dict[str, Any]:
    return {name: stages[name] for name in _STAGES.values() if name in stages}


def _of_attack(folder: epath.Path, rows: list[dict]) -> Iterator[Strip]:
    """Of `--mode=attack`: its one file of images."""
    for found in _named(folder / "adversarial", "clean", "images"):
        attacked = [row for row in rows if row["attack"] != CLEAN]
        guesses = {
            "clean": found.get("clean_prediction"),
            "attacked": found.get("prediction"),
        }
        yield Strip(
            _title(attacked[0]) if attacked else "attacked images",
            {"attacked": label(attacked[0])} if attacked else {},
            {"clean": found["clean"], "attacked": found["images"]},
            {name: g for name, g in guesses.items() if g is not None},
            found.get("labels"),
            _classes(rows),
        )


def _of_table(folder: epath.Path, rows: list[dict]) -> Iterator[Strip]:
    """Of `--mode=evaluate` on the bundled images, which workdirs do not repeat."""
    store, bare = Store(folder), {}
    for row in rows:
        if row["defence"] == "none":
            bare[row["classifier"], row["attack"], row["preset"], row["eps_attack"]] = (
                row
            )
    for row in rows:
        known = row["attack"] not in (CLEAN, WORST) and row["defence"] == _PURIFY
        key = (row["classifier"], row["attack"], row["preset"], row["eps_attack"])
        if not known or key not in bare or row.get("input") != "sample":
            continue
        if row.get("own") or row["through"] not in (None, "classifier"):
            continue
        bound = float("inf") if row["eps_attack"] is None else row["eps_attack"]
        who = Adversary(row["attack"], row["preset"], bound, row["source"])
        images = _arrays(store.path("adversarial", slug(who))).get("images")
        name = f"{slug(who)} by {_PURIFY}"
        purified = _arrays(store.path("purified", name)).get("images")
        if images is None or purified is None or images.dtype != np.uint8:
            continue
        clean, labels = data.sample(row["dataset"])
        guesses = {}
        for stage, adversary, defences in (
            ("clean", Adversary(CLEAN), ()),
            ("attacked", who, ()),
            ("purified", who, (_PURIFY,)),
        ):
            name = f"{Pipeline(row['classifier'], defences)} {slug(adversary)}"
            said = _arrays(store.path("predictions", name)).get("classes")
            if said is not None:
                guesses[stage] = said
        yield Strip(
            _title(row),
            {"attacked": label(bare[key]), "purified": label(row)},
            {"clean": clean[: len(images)], "attacked": images, "purified": purified},
            guesses,
            labels[: len(images)],
            data.CLASS_NAMES.get(row["dataset"], ()),
        )


def detection(path: epath.Path, rows: Sequence[dict], count: int) -> str:
    """What arrays of `--mode=detect` show, as HTML; "" where there are none.

    Args:
      path: of the arrays.
      rows: of the same run, for who attacked.
      count: images at most, divided among the attacks.

    Raises:
      ValueError: the file cannot be read, or holds something else.
    """
    found = _arrays(path)
    if not found:
        return ""
    try:
        return _detection(found, rows, count)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} holds no arrays of --mode=detect: {error}") from error


def _detection(found: dict[str, np.ndarray], rows: Sequence[dict], count: int) -> str:
    sets: dict[tuple[str, str], dict[str, dict[str, np.ndarray]]] = {}
    for key, array in found.items():
        parts = key.split("/")
        if len(parts) == 4:
            eps, attack, defence, what = parts
            sets.setdefault((eps, attack), {}).setdefault(defence, {})[what] = array
    shape = found["examples/clean"].shape[1:]
    clean = {eps: of for (eps, attack), of in sets.items() if attack == CLEAN}
    attacks = {key: of for key, of in sets.items() if key[1] != CLEAN}

    def bits(scores: np.ndarray) -> np.ndarray:
        return np.asarray(likelihood.to_bits_per_dim(scores, shape))

    scores = [bits(of[d]["log_probs"]) for of in sets.values() for d in of]
    edges = page_charts.bins_for(scores)
    drawn, shown = [], []
    for (eps, attack), of in attacks.items():
        row, purified = (
            next(
                (
                    r
                    for r in rows
                    if is_measured(r)
                    and r["attack"] == attack
                    and r["defence"] == defence
                    and f"{r.get('table_eps') or 0:g}" == eps
                ),
                {},
            )
            for defence in ("none", _PURIFY)
        )
        threats = {"attacked": label(row), "purified": label(purified)}
        drawn.append(
            _drawings(
                found,
                clean[eps],
                of,
                f"{attack.upper()}, ε {eps}",
                threats,
                edges,
                bits,
            )
        )
        if strip := _examples(found, clean[eps], of, row, threats):
            shown.append(strip)
    each = max(1, count // max(len(shown), 1)) if count else 0
    html = (
        "<h3>Likelihood and detection</h3>"
        "<p>Bits/dim under the density model (attacked images are less likely: further "
        "right), and ROC curves with training images as negatives.</p>"
        + page_charts.legend(page_charts.SERIES)
        + f'<div class="cards">{"".join(drawn)}</div>'
    )
    return html + "".join(page_images.cards(strip, each) for strip in shown if each)


def _drawings(
    found: dict,
    clean: dict,
    of: dict,
    title: str,
    threats: dict,
    edges: np.ndarray,
    bits: Callable[[np.ndarray], np.ndarray],
) -> str:
    """A histogram and a ROC curve of one attack."""
    scores = {"attacked": of["none"]["log_probs"]}
    if _PURIFY in of:
        scores["purified"] = of[_PURIFY]["log_probs"]
    values = {"clean": bits(clean["none"]["log_probs"])}
    values |= {name: bits(s) for name, s in scores.items()}
    areas = page_charts.areas(found["reference"], scores)
    told = ", ".join(
        f"{area:.3f} {name} {page.tag(threats[name])}" for name, area in areas.items()
    )
    caption = f"<b>{page.text(title)}</b> n {len(scores['attacked'])}<br>AUC {told}"
    return (
        f"<figure><figcaption>{caption}</figcaption>"
        + page_charts.histogram(values, edges, "bits/dim")
        + page_charts.roc(found["reference"], scores)
        + "</figure>"
    )


def _examples(
    found: dict, clean: dict, of: dict, row: dict, threats: dict
) -> Strip | None:
    """The images that are kept of one attack."""
    if "images" not in of["none"] or "images" not in of.get(_PURIFY, {}):
        return None
    if not row:
        return None
    count = len(of["none"]["images"])
    stages = {"clean": clean["none"], "attacked": of["none"], "purified": of[_PURIFY]}
    return Strip(
        _title(row),
        threats,
        {name: one["images"][:count] for name, one in stages.items()},
        {name: one["probabilities"].argmax(-1) for name, one in stages.items()},
        found["examples/labels"][:count],
        _classes([row]),
    )


def scores(folder: epath.Path) -> str:
    """A histogram of a workdir of `--mode=score` as HTML; "" where there is none."""
    bits = _arrays(folder / "scores.npz").get("bits_per_dim")
    if bits is None or bits.ndim != 1 or not len(bits):
        return ""
    edges = page_charts.bins_for([bits])
    drawing = page_charts.histogram({"clean": bits}, edges, "bits/dim")
    caption = f"<b>as given</b> n {len(bits)}, mean {np.mean(bits):.3f} bits/dim"
    return (
        f'<div class="cards"><figure><figcaption>{caption}</figcaption>{drawing}'
        "</figure></div>"
    )


def command(told: Mapping[str, Any], rows: Sequence[dict]) -> str:
    """A command that repeats a run, with all that its results depend on.

    Args:
      told: the workdir's `config.json`.
      rows: of the run, which say where its images came from.
    """
    dataset, own = str(told.get("dataset")), "own" in told
    config = f"custom.py:{dataset}" if own else f"{dataset}.py"
    words = [f"--config=configs/{config}", f"--mode={told.get('mode')}"]
    words += [
        f"--config.{k}={v}" for k, v in _flat(told) if k not in ("mode", "dataset")
    ]
    if not own and any(row.get("input") in data.SPLITS for row in rows):
        words.append("--config.data_dir=DATA_DIR")
    return " \\\n  ".join(["python main.py", *map(_quoted, words)])


def _quoted(word: str) -> str:
    """An option as a shell takes it, tuples of texts in double quotes."""
    name, equals, value = word.partition("=")
    if "'" in value and not set(value) & set('"$`\\!'):
        return f'{name}{equals}"{value}"'
    return shlex.quote(word)


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        path = f"{before}.{name}" if before else name
        if isinstance(inner, Mapping):
            yield from _flat(inner, path)
        elif inner is not None:
            yield path, _tuples(inner)


def _tuples(value: Any) -> Any:
    """Lists of JSON as the command line takes them."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def identifier(text: str) -> str:
    """Any text as the name of an element."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "rows"
