"""Tables about PuVAE, MagNet and detectors, from rows: the thesis's, and its claims."""

from pixeldefend.experiment import grid, published, report, sweeps, tables
from pixeldefend.experiment.published import THESIS_ATTACKS
from pixeldefend.experiment.sweeps import OURS
from reproduction import measured
from reproduction.measured import interval, table, told

OWN = ("none", "puvae", OURS)
OTHERS = ("magnet", "reject_magnet+magnet", "reject_p_value+puvae")
_SLOPES = {
    "bpda": "BPDA",
    "straight_through": "its slope",
    "expectation": "expectation over its noise",
}


def sweep(dataset: str, defences: tuple[str, ...]) -> str:
    """The thesis's Tables 3 to 5."""
    rows = measured.rows(f"sweep_{dataset}")
    return report.markdown_table(*sweeps.lines(rows, defences))


class _Swept:
    """The rows of a sweep, by attack, defence and how purifiers are seen."""

    def __init__(self, dataset: str):
        rows = measured.rows(f"sweep_{dataset}")
        self._dataset, self._classifier = dataset, rows[0]["classifier"]
        self._curves, self._largest = sweeps.curves(rows), sweeps.largest(rows)

    def _key(self, attack: str, defence: str, slope: str = "") -> sweeps.Key:
        how = ("", "", "") if attack == grid.CLEAN else ("thesis", slope, "fractional")
        return sweeps.Key(self._classifier, defence, attack, *how)

    def last(self, *which: str) -> dict:
        """The row of the largest eps, of as many images as there are."""
        return self._largest[self._key(*which)]

    def worst(self, *which: str) -> dict:
        """The row of the eps that hurts most."""
        return sweeps.worst(self._curves[self._key(*which)])

    def apart(self, defence: str, slope: str) -> float:
        """Points from the thesis's FGSM, BIM and PGD, their mean."""
        kind = "detector" if defence == OURS else defence
        differences = [
            abs(
                100 * self.last(attack, defence, slope)["accuracy"]
                - published.thesis(self._dataset, attack, kind)
            )
            for attack in THESIS_ATTACKS
        ]
        return sum(differences) / len(differences)

    def in_norm(self, attack: str, norm: str) -> str:
        """PuVAE at the eps where the bare classifier's accuracy is nearest to 10 %."""
        pairs = [
            {"bare": bare, "behind": behind}
            for behind in self._curves[self._key(attack, "puvae")]
            for bare in self._curves[self._key(attack, "none")]
            if bare["eps_attack"] == behind["eps_attack"]
        ]
        return told(
            f"{norm} {{bare[fraction]:.2g}}: "
            "bare {bare[accuracy]:.1%}, PuVAE {behind[accuracy]:.1%}",
            min(pairs, key=lambda pair: abs(pair["bare"]["accuracy"] - 0.1)),
        )


def sweep_claims(dataset: str) -> str:
    """The thesis's claims, each with a number."""
    found, known = _Swept(dataset), published.THESIS_CLAIMS.get(dataset, {})
    rmse = ", ".join(
        told("{rmse_of_one:.3f}", found.last(attack, "puvae"))
        for attack in (grid.CLEAN, "pgd")
    )
    rejected = "; ".join(
        told(
            f"{attack.upper()} {{rejected:.1%}} at {{fraction:.2f}}",
            found.worst(attack, OURS),
        )
        for attack in THESIS_ATTACKS
    )
    (bar,) = found.last(grid.CLEAN, OURS)["thresholds"]["reject_rmse"]
    hurts = told("{fraction:.2f}", found.worst("pgd", OURS))
    seen = "; ".join(
        told(f"{name} {{accuracy:.1%}}", found.last("pgd", "puvae", slope))
        for slope, name in _SLOPES.items()
    )
    distances = {
        name: f"attacks on the bare classifier {found.apart(defence, ''):.1f}, "
        f"through the purifier {found.apart(defence, 'straight_through'):.1f}"
        for defence, name in (("puvae", "PuVAE"), (OURS, "PuVAE with the detector"))
    }
    lines = [
        [
            "mean RMSE, clean and PGD of the largest eps (0 to 1)",
            known.get("rmse"),
            rmse,
        ],
        ["rejected at the worst eps", known.get("rejected"), rejected],
        [
            "the eps of PGD that hurts most, and t (0 to 1)",
            "slightly above t",
            f"{hurts}, {bar / 255:.3f}",
        ],
        *(
            [
                f"mean distance of {name} from the thesis's FGSM, BIM and PGD, points",
                None,
                here,
            ]
            for name, here in distances.items()
        ),
        ["PuVAE under PGD of the largest eps that looks through it", None, seen],
        [
            "PGD in L-infinity and in L2, each where the bare classifier is nearest "
            "10 %",
            "no difference",
            f"{found.in_norm('pgd', 'L-infinity')}; {found.in_norm('pgd_l2', 'L2')}",
        ],
    ]
    header = ["claim", "thesis", "here"]
    return report.markdown_table(header, [[c, t or "", h] for c, t, h in lines])


def false_positives() -> str:
    """Clean test images that detectors reject."""
    columns = {
        "data set": "{dataset}",
        "detector": "{detector}",
        "asked for": lambda row: f"{100 * row['false_positive_rate']:g} %",
        "rejected (95 %)": lambda row: interval(row, "rejected", digits=2),
        "n": "{n}",
    }
    names = ("calibrate_mnist", "calibrate_fashion_mnist")
    return table(measured.rows(*names), columns)


def evading() -> str:
    """Attacks that see purifier and detector."""
    columns = {
        "data set": "{dataset}",
        "defence": lambda row: row["defence"].replace("+", ", "),
        "eps, 0 to 1": "{fraction:.2f}",
        "right": "{right:.0%}",
        "wrong": "{wrong:.0%}",
        "rejected": "{rejected:.0%}",
        "success in the attacker's own draw": "{success:.0%}",
        "n": "{n}",
    }
    names = ("sweep_mnist", "sweep_fashion_mnist")
    return table(measured.rows(*names, attack=grid.EVADE), columns)


def p_values_in_front(dataset: str) -> str:
    """PixelDefend and PuVAE with and without the p-value as a detector."""
    rows = measured.rows(f"p_value_{dataset}")
    defences = dict.fromkeys(row["defence"] for row in rows)
    texts = [
        f"{dataset}/cnn_a" + ("" if one == "none" else f" + {one}").replace("+", " + ")
        for one in defences
    ]
    sizes = dict.fromkeys(r["eps_attack"] for r in rows if r["attack"] == "pgd")
    columns = [f"{name} preset=thesis" for name in THESIS_ATTACKS]
    layout = grid.read(texts, columns, sizes)
    return tables.Table(layout, rows, dataset).show(report.markdown_table)
