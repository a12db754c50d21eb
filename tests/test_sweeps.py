import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixeldefend.experiment import grid, published, sweeps

OURS = "reject_rmse+puvae"
PGD, SEEING = (
    f"pgd preset=thesis levels=fractional{more}"
    for more in ("", " through=straight_through")
)


def _row(defences, text, eps, accuracy, **more):
    """As `--mode=sweep` writes it, of what `sweeps` reads."""
    row = grid.pipeline(f"mnist/a{defences}", eps)
    adversary = grid.Adversary(grid.CLEAN)
    if text != grid.CLEAN:
        adversary = grid.adversary_for(row, grid.column(text), eps)
    found = {
        "dataset": "mnist",
        "classifier": row.classifier,
        "defence": row.defence,
        "attack": adversary.attack,
        "preset": adversary.preset,
        "eps_attack": adversary.eps,
        "slope": adversary.gradient or None,
        "accuracy": accuracy,
        "low": round(accuracy - 0.02, 4),
        "high": round(accuracy + 0.01, 4),
        "n": 100,
    }
    return found | ({"levels": "fractional"} if adversary.fractional else {}) | more


LARGEST = {"mnist": 0.3, "fashion_mnist": 0.3, "cifar10": 0.06}
BARE, PUVAE, BOTH = "", " + puvae", " + reject_rmse + puvae"


def _rows():
    """Each defence clean, under PGD of two eps, and PuVAE also under one through it."""
    return [
        _row(BARE, grid.CLEAN, 76.5, 0.99),
        _row(BARE, PGD, 76.5, 0.0),
        _row(BARE, PGD, 25.5, 0.3),
        _row(PUVAE, grid.CLEAN, 76.5, 0.97),
        _row(PUVAE, PGD, 76.5, 0.8),
        _row(PUVAE, PGD, 25.5, 0.9),
        _row(PUVAE, SEEING, 76.5, 0.1),
        _row(BOTH, grid.CLEAN, 76.5, 0.96),
        _row(BOTH, PGD, 25.5, 0.91),
        _row(BOTH, PGD, 76.5, 0.94),
    ]


def test_curves_are_rows_of_one_kind_by_rising_eps():
    found = sweeps.curves(_rows())
    pgd, clean = ("pgd", "thesis", "", "fractional"), ("none", "", "", "")
    through = "pgd", "thesis", "straight_through", "fractional"
    wanted = {
        ("none", *clean): [0.99],
        ("none", *pgd): [0.3, 0.0],
        ("puvae", *clean): [0.97],
        ("puvae", *pgd): [0.9, 0.8],
        ("puvae", *through): [0.1],
        (OURS, *clean): [0.96],
        (OURS, *pgd): [0.91, 0.94],
    }
    assert {
        (key.defence, *key.column): [row["accuracy"] for row in curve]
        for key, curve in found.items()
    } == wanted
    assert {key.classifier for key in found} == {"mnist/a"}


def test_every_field_of_a_key_makes_a_curve_of_its_own():
    one = _row(PUVAE, SEEING, 76.5, 0.1)
    others = {
        "classifier": "mnist/b",
        "defence": "magnet",
        "attack": "bim",
        "slope": "bpda",
        "levels": "whole",
    }
    rows = [one, *(one | {name: value} for name, value in others.items())]
    found = sweeps.curves(rows)
    assert len(found) == len(rows) == 6
    without = {name: value for name, value in one.items() if name != "levels"}
    assert len(sweeps.curves([*rows, without])) == 6  # then they are whole
    # Clean images have none, however they are written down.
    clean = _row(PUVAE, grid.CLEAN, 0, 0.9)
    assert len(sweeps.curves([clean, clean | {"levels": "fractional"}])) == 1


def test_of_what_was_measured_twice_the_row_of_more_images_stands():
    few, many = _row(PUVAE, PGD, 76.5, 0.8), _row(PUVAE, PGD, 76.5, 0.7, n=101)
    other = _row(PUVAE, PGD, 25.5, 0.9, n=5)
    for rows in ([few, many, other], [other, many, few]):
        (curve,) = sweeps.curves(rows).values()
        assert curve == [other, many]


def test_a_curve_is_of_one_number_of_images_and_the_last_cell_of_the_most():
    own = [_row(PUVAE, PGD, eps, 0.5 - eps / 1000, n=20) for eps in (2.0, 25.5, 76.5)]
    more = _row(PUVAE, PGD, 76.5, 0.6, n=100)
    for rows in ([*own, more], [more, *own]):
        (curve,) = sweeps.curves(rows).values()
        assert curve == own and sweeps.worst(curve) == own[-1]
        assert list(sweeps.largest(rows).values()) == [more]
        _, ((_, last, worst),) = sweeps.lines(rows)
        assert last.startswith("60.0") and worst.startswith("42.4")


@given(st.permutations(_rows()))
def test_the_order_of_rows_does_not_matter(rows):
    assert sweeps.curves(rows) == sweeps.curves(_rows())


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from([0.1, 0.2, 0.3]))))
def test_the_worst_is_the_least_accuracy_at_its_least_eps(points):
    points = points or [(1, 0.1)]
    points = list(dict(points).items())
    rows = [{"eps_attack": eps, "accuracy": share} for eps, share in sorted(points)]
    found = sweeps.worst(rows)
    least = min(share for _, share in points)
    assert found["accuracy"] == least
    assert found["eps_attack"] == min(eps for eps, share in points if share == least)


def test_a_table_has_the_largest_eps_the_worst_and_the_thesis():
    header, lines = sweeps.lines(_rows())
    names = "no defence", "puvae", "reject rmse, puvae"
    assert header == ["", *(cell for name in names for cell in (name, "worst (eps)"))]
    wanted = [
        ["clean", "99.0 (97.0 to 100.0), thesis 99.2", ""]
        + ["97.0 (95.0 to 98.0), thesis 97.2", ""]
        + ["96.0 (94.0 to 97.0), thesis 97.2", ""],
        ["PGD, eps 0.30", "0.0 (-2.0 to 1.0), thesis 0.0", "0.0 (-2.0 to 1.0) at 0.30"]
        + ["80.0 (78.0 to 81.0), thesis 86.4", "80.0 (78.0 to 81.0) at 0.30"]
        # Behind the detector the smaller one hurts more.
        + ["94.0 (92.0 to 95.0), thesis 96.9"]
        + ["91.0 (89.0 to 92.0) at 0.10, thesis 93.0"],
        ["PGD through the purifier (straight through), eps 0.30", "", ""]
        + ["10.0 (8.0 to 11.0)", "", "", ""],
    ]
    assert lines == wanted
    shown = sweeps.show(_rows()).splitlines()
    assert max(map(len, shown)) <= 100
    at = shown.index(next(line for line in shown if "91.0 (93.0) at 0.10" in line))
    assert shown[at + 1].split()[-1] == "89.0-92.0"
    assert "  (straight through), eps 0.30" in "\n".join(shown)


def test_a_table_may_show_some_defences_only():
    header, lines = sweeps.lines(_rows())
    some, fewer = sweeps.lines(_rows(), ("none", OURS))
    assert some == [header[i] for i in (0, 1, 2, 5, 6)]
    assert fewer == [[line[i] for i in (0, 1, 2, 5, 6)] for line in lines[:2]]


@pytest.mark.parametrize("defences", [BARE, PUVAE, BOTH])
def test_the_thesis_stands_where_an_attack_does_not_look_at_the_purifier(defences):
    """It does not say that any did."""
    for text in (PGD, SEEING):
        rows = [_row(defences, text, eps, 0.5) for eps in (25.5, 76.5)]
        _, ((_, last, worst),) = sweeps.lines(rows)
        looks = text == SEEING and defences != BARE
        assert ("thesis" in last) is not looks
        assert ("thesis" in worst) is (defences == BOTH and not looks)


@pytest.mark.parametrize(
    "more", [{"defence": "magnet"}, {"dataset": "svhn"}, {"attack": "deepfool"}]
)
def test_there_is_no_published_number_for_what_the_thesis_did_not_do(more):
    rows = [_row(PUVAE, PGD, 76.5, 0.5) | more]
    _, ((_, last, _),) = sweeps.lines(rows)
    assert last == "50.0 (48.0 to 51.0)"


def test_columns_are_told_apart_by_their_titles():
    through = _row(PUVAE, SEEING, 76.5, 0.1)
    rows = [through, through | {"levels": "whole"}, through | {"slope": None}]
    rows.append(rows[-1] | {"attack": "pgd_l2"})
    titles = [line[0] for line in sweeps.lines(rows)[1]]
    assert titles == [
        "PGD through the purifier (straight through), eps 0.30",
        "PGD through the purifier (straight through) in whole levels, eps 0.30",
        "PGD, eps 0.30",
        "PGD-L2, eps 0.30",
    ]


# Tables 3 to 5: no defence, PuVAE, theirs, theirs at the worst eps.
THESIS = {
    "mnist": {
        "none": (99.2, 97.2, 97.2, None),
        "fgsm": (23.2, 82.9, 99.8, 96.2),
        "bim": (0.2, 93.9, 93.9, 93.9),
        "pgd": (0.0, 86.4, 96.9, 93.0),
    },
    "fashion_mnist": {
        "none": (92.2, 82.5, 82.1, None),
        "fgsm": (25.4, 55.6, 87.9, 74.2),
        "bim": (20.9, 77.8, 77.5, 77.5),
        "pgd": (1.6, 67.3, 77.1, 73.2),
    },
    "cifar10": {
        "none": (80.2, 42.3, 41.7, None),
        "fgsm": (11.4, 25.3, 30.4, 30.4),
        "bim": (4.7, 31.7, 34.9, 34.9),
        "pgd": (0.2, 35.1, 37.1, 37.1),
    },
}


@pytest.mark.parametrize("dataset", THESIS)
def test_published_numbers_are_those_of_the_thesis(dataset):
    kinds = "none", "puvae", "detector", "worst"
    for attack, numbers in THESIS[dataset].items():
        found = tuple(published.thesis(dataset, attack, kind) for kind in kinds)
        assert found == numbers
    assert published.thesis(dataset, "deepfool", "puvae") is None
    assert published.thesis("svhn", "pgd", "puvae") is None


@pytest.mark.parametrize("dataset", THESIS)
@pytest.mark.parametrize("attack", ["none", "fgsm", "bim", "pgd"])
def test_each_published_number_stands_in_its_cell(dataset, attack):
    own = {"dataset": dataset, "attack": attack}
    rows = [
        _row(defences, PGD, eps, accuracy) | own
        for defences in (BARE, PUVAE, BOTH)
        for eps, accuracy in ((3.0, 0.4), (255 * LARGEST[dataset], 0.5))
    ]
    _, ((_, *cells),) = sweeps.lines(rows)
    none, puvae, both, worst = THESIS[dataset][attack]
    wanted = [none, None, puvae, None, both, worst]
    found = [cell.partition("thesis ")[2] for cell in cells]
    assert found == ["" if x is None else f"{x:.1f}" for x in wanted]
    assert np.all([cell.startswith("50.0") for cell in cells[::2]])


def test_there_is_no_published_number_for_another_eps():
    rows = [_row(PUVAE, PGD, eps, 0.5) for eps in (25.5, 51.0)]
    _, ((_, *cells),) = sweeps.lines(rows)
    assert not any("thesis" in cell for cell in cells)


def test_attacks_of_other_presets_are_other_curves():
    strong = PGD.replace("thesis", "strong")
    rows = [_row(PUVAE, text, 76.5, 0.5) for text in (PGD, strong)]
    assert [key.preset for key in sweeps.curves(rows)] == ["thesis", "strong"]
    titles = [line[0] for line in sweeps.lines(rows)[1]]
    assert titles == ["PGD, eps 0.30", "PGD (strong), eps 0.30"]
