"""The rows and columns of a table of attacks against defences, as configs name them."""

import dataclasses
from collections.abc import Iterable, Iterator

from pixeldefend import attacks
from pixeldefend.defences import DEFENCES
from pixeldefend.defences.base import GRADIENTS, OUTPUTS
from pixeldefend.experiment import rows

CLEAN = "none"
EVADE = "evade"  # `attacks.evade`, past a classifier and its detectors


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A classifier and what stands in front of it.

    Attributes:
      classifier: its weights, as `zoo.load_released` takes them.
      defences: of `DEFENCES`, in the order in which an image passes them; a detector
        judges it as it then is, and hands it on unchanged.
    """

    classifier: str
    defences: tuple[str, ...] = ()

    @property
    def defence(self) -> str:
        """All defences in one word, for rows: "none", "squeeze", "purify+squeeze"."""
        return "+".join(self.defences) or rows.NO_DEFENCE

    @property
    def detectors(self) -> tuple[str, ...]:
        """Those among the defences."""
        return tuple(name for name in self.defences if DEFENCES[name].detects)

    @property
    def purifies(self) -> bool:
        """Whether a density model purifies."""
        kinds = (DEFENCES[name] for name in self.defences)
        return any(k.model == "density_model" and not k.detects for k in kinds)

    @property
    def models(self) -> set[str]:
        """Kinds of models that the defences take, such as "density_model"."""
        return {DEFENCES[name].model for name in self.defences} - {""}

    def __str__(self) -> str:
        return " + ".join((self.classifier, *self.defences))


@dataclasses.dataclass(frozen=True)
class Column:
    """An attack of a table.

    Attributes:
      attack: its name, or `CLEAN`.
      preset: of its arguments.
      images: how many at most are attacked, the first; 0 for all.
      eps: that it has whatever the table's; None for the table's.
      gradient: how it looks through defences as well, of `GRADIENTS`, or `OUTPUTS`; ""
        for not at all.
      fractional: whether levels are left as they are found, not whole ones.
    """

    attack: str
    preset: str | None = None
    images: int = 0
    eps: float | None = None
    gradient: str = ""
    fractional: bool = False

    def __str__(self) -> str:
        """Short, for the head of a table: what is usual goes without saying."""
        words = [self.attack]
        if self.attack != CLEAN and self.preset != attacks.usual(self.attack):
            assert self.preset is not None  # an attack has one
            words.append(self.preset)
        if self.eps is not None and self.eps != _usual_eps(self.attack):
            words.append(f"{self.eps:g}")
        if self.gradient:
            words.append(f"({self.gradient})")
        if self.fractional:
            words.append("fractional")
        return " ".join(words)


@dataclasses.dataclass(frozen=True)
class Adversary:
    """Who attacks and how: what a set of attacked images depends on.

    Attributes:
      attack: its name, or `CLEAN` for the images as they are.
      preset: of its arguments.
      eps: in the attack's norm; 0.0 for clean images.
      source: the classifier that the attack looked at; None where it looks at none.
      through: what it saw in front of the classifier, in the order in which an image
        passes it: of `DEFENCES`.
      gradient: how it saw these, as for `Column`; "" for none.
      images: as for `Column`.
      fractional: likewise.
    """

    attack: str
    preset: str | None = None
    eps: float = 0.0
    source: str | None = None
    through: tuple[str, ...] = ()
    gradient: str = ""
    images: int = 0
    fractional: bool = False

    @property
    def seen(self) -> str | None:
        """For rows: what the gradient saw."""
        if self.source is None:
            return None
        labels = (
            (DEFENCES[name].always_seen if name in DEFENCES else "") or name
            for name in self.through
        )
        return "+".join((*labels, "classifier"))

    def __str__(self) -> str:
        if self.attack == CLEAN:
            return "clean"
        text = f"{self.attack}{f' ({self.preset})' if self.preset else ''}"
        text += f", eps {self.eps:g}{', fractional' if self.fractional else ''}"
        if self.source is None:
            return text
        seen = " behind ".join((self.source, *self.through[::-1]))
        return f"{text}, on {seen}{f' ({self.gradient})' if self.gradient else ''}"


def pipeline(text: str, eps: float) -> Pipeline:
    """Reads a row: "WEIGHTS + DEFENCE + DEFENCE".

    Args:
      text: an image passes the defences in the order in which they stand there; a
        `{eps}` in WEIGHTS stands for the attack's, so that an adversarially trained row
        takes the network of its delta.
      eps: of the attack, levels.

    Raises:
      ValueError: no weights, or an unknown defence.
    """
    weights, *defences = (word.strip() for word in text.split(" + "))
    if not weights or weights in DEFENCES:
        raise ValueError(f"row {text!r} must begin with the weights of a classifier")
    for name in defences:
        if name not in DEFENCES:
            raise ValueError(
                f"unknown defence {name!r} in row {text!r}: one of "
                f"{', '.join(DEFENCES)}"
            )
    return Pipeline(_filled(weights, eps), tuple(defences))


def column(text: str) -> Column:
    """Reads an attack: "NAME preset=P images=N eps=E through=T levels=fractional".

    NAME must be there. Attacks of another norm than L-infinity have no bound unless
    `eps` gives one. With `through=bpda`, or another of `GRADIENTS`, an attack
    looks through purifiers too (white-box); with `through=outputs` one does that takes
    no gradient. With `levels=fractional` it is not rounded
    to whole levels, as no file of an image could hold it.

    Raises:
      ValueError: unknown attack, preset or option, or no number where one must be.
    """
    name, *words = text.split() or [""]
    options = {"preset": "", "images": "0", "eps": "", "through": "", "levels": ""}
    for word in words:
        option, equals, value = word.partition("=")
        if option not in options or not equals:
            raise ValueError(
                f"attack {text!r}: {word!r} is none of preset=, images=, eps=, "
                "through=, levels="
            )
        options[option] = value
    if options["through"] not in ("", *GRADIENTS, OUTPUTS):
        known = ", ".join((*GRADIENTS, OUTPUTS))
        raise ValueError(
            f"attack {text!r}: through= must be one of {known}, or be left out"
        )
    if options["levels"] not in ("", "fractional"):
        raise ValueError(f"attack {text!r}: levels= must be fractional, or be left out")
    preset = attacks.usual(name, options["preset"])
    try:
        images = int(options["images"])
        own = float(options["eps"]) if options["eps"] else None
    except ValueError as error:
        raise ValueError(f"attack {text!r}: {error}") from error
    if images < 0:
        raise ValueError(f"attack {text!r}: images must not be negative")
    if own is None:
        own = _usual_eps(name)
    if own is not None:
        attacks.check_eps(own, f"eps of attack {text!r}", not options["levels"])
    if options["through"] and not attacks.ATTACKS[name].looks:
        raise ValueError(f"attack {text!r}: {name} ignores the model, so no through=")
    if options["through"] == OUTPUTS and attacks.ATTACKS[name].differentiates:
        raise ValueError(f"attack {text!r}: {name} needs gradients, not outputs alone")
    fractional = bool(options["levels"])
    if fractional and (name == "rand" or attacks.ATTACKS[name].cut):
        raise ValueError(f"attack {text!r}: {name} gives whole levels only")
    return Column(name, preset, images, own, options["through"], fractional)


def _usual_eps(attack: str) -> float | None:
    """None for the table's; without a ball of levels there is nothing that it means."""
    return None if attacks.ATTACKS[attack].norm == "linf" else float("inf")


def _filled(text: str, eps: float) -> str:
    """Weights with the `{eps}` in their name filled in."""
    return text.replace("{eps}", f"{eps:g}")


def adversary_for(
    row: Pipeline, column: Column, eps: float, source: str | None = None
) -> Adversary:
    """The images that a cell needs.

    Attacks see the classifier and, of the defences in front of it, what is always seen
    (the median filter of a squeezed classifier); others only where the column says so.

    Args:
      row: what is attacked.
      column: by what.
      eps: the table's.
      source: a classifier to make the images on instead (transfer); None for the row's.

    Raises:
      ValueError: a defence that cannot be looked through so.
    """
    if column.attack == CLEAN:
        return Adversary(CLEAN, images=column.images)
    known = attacks.ATTACKS[column.attack]
    eps = eps if column.eps is None else column.eps
    adversary = Adversary(
        column.attack,
        column.preset,
        eps,
        images=column.images,
        fractional=column.fractional,
    )
    if not known.looks:
        return adversary
    through, looks = [], False
    for name in () if source else row.defences:
        defence = DEFENCES[name]
        if defence.always_seen:
            through += [name] * (not known.bare)
        elif column.gradient and not defence.detects:
            if column.gradient not in (*defence.gradients, OUTPUTS):
                raise ValueError(
                    f"attack {column} on {row}: {name} has no gradient other than "
                    f"{', '.join(defence.gradients)}"
                )
            through.append(name)
            looks = True
    return dataclasses.replace(
        adversary,
        source=source or row.classifier,
        through=tuple(through),
        gradient=column.gradient if looks else "",
    )


def threat(row: Pipeline, adversary: Adversary) -> str | None:
    """Who attacks, see `rows.threat`."""
    return rows.threat(row.classifier, adversary.source, row.defence, adversary.seen)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table: every row under every attack, for each eps.

    Attributes:
      rows: see `pipeline`.
      columns: the attacks; clean images are added in front.
      eps: levels, of the attacks.
      sources: classifiers on which attacks are made besides each row's own.
    """

    rows: tuple[str, ...]
    columns: tuple[Column, ...]
    eps: tuple[float, ...]
    sources: tuple[str, ...] = ()

    def pipelines(self) -> list[Pipeline]:
        """All that are defended or attacked, each once."""
        return _unique(pipeline(text, eps) for text in self.rows for eps in self.eps)

    def cells(self) -> Iterator[tuple[Pipeline, Adversary]]:
        """All outcomes to be measured, each once: clean, own attacks, transfer."""

        def every() -> Iterator[tuple[Pipeline, Adversary]]:
            for text in self.rows:
                for eps in self.eps:
                    row = pipeline(text, eps)
                    yield row, adversary_for(row, Column(CLEAN), eps)
                    for column in self.columns:
                        yield row, self.adversary(row, column, eps)
                        for source in self.sources_at(eps):
                            yield row, self.adversary(row, column, eps, source)

        return iter(_unique(every()))

    def adversary(
        self, row: Pipeline, column: Column, eps: float, source: str | None = None
    ) -> Adversary:
        """As `adversary_for`; where columns differ in nothing but how many images they
        attack, such as in front of no purifier, the larger set serves them all."""
        wanted = adversary_for(row, column, eps, source)
        others = (
            adversary_for(row, other, size, source)
            for other in self.columns
            for size in self.eps
        )
        plain = dataclasses.replace(wanted, images=0)
        same = [o for o in others if dataclasses.replace(o, images=0) == plain]
        return max(
            [wanted, *same], key=lambda adversary: adversary.images or float("inf")
        )

    def sources_at(self, eps: float) -> list[str]:
        """The other classifiers for attacks of `eps`."""
        return [_filled(text, eps) for text in self.sources]

    def attacks_on(self, row: Pipeline, eps: float) -> list[Adversary]:
        """The row's own attacks at `eps`, in the order of the columns."""
        return [self.adversary(row, column, eps) for column in self.columns]


def _unique(found: Iterable) -> list:
    return list(dict.fromkeys(found))


def read(
    rows: Iterable[str],
    columns: Iterable[str],
    eps: Iterable[float],
    sources: Iterable[str] = (),
) -> Grid:
    """Reads what a config says of a table.

    Raises:
      ValueError: nothing to measure, something given twice or of another type, or as
        for `pipeline` and `column`.
    """
    given = {"rows": tuple(rows), "attacks": tuple(columns), "sources": tuple(sources)}
    for field, texts in given.items():
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"{field} must be strings: {text!r}")
    try:
        sizes = tuple(float(one) for one in eps)
    except (TypeError, ValueError) as error:
        raise ValueError(f"eps_attack must be numbers: {eps}") from error
    grid = Grid(
        given["rows"], tuple(map(column, given["attacks"])), sizes, given["sources"]
    )
    if not grid.rows or not grid.eps:
        raise ValueError(
            "rows or eps_attack is empty: a table needs at least one row and one eps"
        )
    for one in grid.eps:
        attacks.check_eps(one, "eps_attack")
    # A sweep may well begin below one level, but not a table of whole levels end there.
    if any(c.eps is None and not c.fractional for c in grid.columns):
        attacks.check_eps(max(grid.eps), "eps_attack", whole=True)
    _check_once("attack", list(map(str, grid.columns)))
    _check_once("eps", [f"{one:g}" for one in grid.eps])
    list(grid.cells())  # raises what it must
    for one in grid.eps:
        _check_once("row", [str(pipeline(text, one)) for text in grid.rows])
    return grid


def _check_once(what: str, names: list[str]) -> None:
    """Raises ValueError where one of the names is there twice."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the {what} {name!r} is given twice")
