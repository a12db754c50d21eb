import numpy as np
import pytest

from pixeldefend.experiment import data, grid, published, report, tables
from pixeldefend.experiment.modes import evaluating
from reproduction import claims, paper_tables

RESNET, PURIFIED = "fashion_mnist/resnet", "fashion_mnist/resnet + purify"
BARE, DEFENDED = "resnet", "resnet + purify"  # as a data set's own table has them
FIVE = ("rand", "fgsm", "bim", "deepfool", "cw images=50")
LAYOUT = grid.read((RESNET, PURIFIED), FIVE, (8, 25), ("other",))


def _row(text, adversary, accuracy, *, n=100, **more):
    row = grid.pipeline(text, 8.0)
    return {
        "dataset": "fashion_mnist",
        "classifier": row.classifier,
        "network": "resnet",
        "training": "normal",
        "defence": row.defence,
        "attack": adversary.attack,
        "preset": adversary.preset,
        "eps_attack": adversary.eps,
        "eps_defend": 32 if row.purifies else 0,
        "threat": grid.threat(row, adversary),
        "source": adversary.source,
        "through": adversary.seen,
        "own": False,
        "accuracy": accuracy,
        "low": accuracy - 0.05,
        "high": accuracy + 0.03,
        "n": n,
    } | more


def _rows():
    """Everything at eps 8, nothing at 25."""
    found = []
    for text, clean, bim, cw in ((RESNET, 0.9, 0.1, 0.2), (PURIFIED, 0.8, 0.7, 0.6)):
        row = grid.pipeline(text, 8.0)
        found.append(_row(text, grid.Adversary(grid.CLEAN), clean))
        for adversary in LAYOUT.attacks_on(row, 8.0):
            share = {"bim": bim, "cw": cw}.get(adversary.attack, 0.85)
            n = 50 if adversary.attack == "cw" else 100
            found.append(_row(text, adversary, share, n=n))
            if adversary.attack == "bim":
                moved = grid.adversary_for(row, grid.column("bim"), 8.0, "other")
                found.append(_row(text, moved, 0.75))
        worst = grid.Adversary(tables.WORST, eps=8.0)
        found.append(_row(text, worst, min(bim, cw) - 0.05, n=50))
    return found


@pytest.fixture
def table():
    return tables.Table(LAYOUT, _rows(), "fashion_mnist")


def test_cells_are_found_among_rows_beside_the_papers(table):
    cell = table.cell(PURIFIED, "bim", 8.0)
    np.testing.assert_allclose((cell.ours, cell.low, cell.high), (70, 65, 73))
    assert cell.paper == 83 and cell.difference == pytest.approx(-13)
    assert str(cell) == "70.0 (65.0 to 73.0), paper 83 (-13.0)"
    assert table.cell(PURIFIED, "none", 8.0).paper == 88
    cw = table.cell(PURIFIED, "cw", 8.0)
    assert str(cw) == "60.0 (55.0 to 63.0), n 50, paper 87 (-27.0)"
    assert cw.short(told=True) == "60.0 (87)\n55.0-63.0"
    assert cw.short(told=False) == "60.0 (87)\n55.0-63.0\nn 50"
    # The paper transfers nothing.
    assert table.cell(PURIFIED, "bim", 8.0, "other").paper is None
    assert table.cell(PURIFIED, "bim", 25.0) is None


def test_the_paper_has_no_number_for_who_sees_the_purifier():
    row = grid.pipeline(PURIFIED, 8.0)
    through = grid.column("bim through=bpda")
    layout = grid.read((PURIFIED,), (*FIVE, "bim through=bpda"), (8,))
    adversary = grid.adversary_for(row, through, 8.0)
    seen = _row(PURIFIED, adversary, 0.4, slope="bpda")
    found = tables.Table(layout, [*_rows(), seen], "fashion_mnist")
    assert found.cell(PURIFIED, "bim", 8.0).ours == pytest.approx(70)
    cell = found.cell(PURIFIED, "bim (bpda)", 8.0)
    assert cell.ours == pytest.approx(40) and cell.paper is None
    # Beside others the paper's five have a strongest of their own, and are named.
    strongest = found.cell(PURIFIED, tables.STRONGEST, 8.0)
    assert strongest.ours == pytest.approx(60) and strongest.paper == 83
    header, _ = found.lines(8.0)
    assert header[-2:] == ["strongest of the paper's five", "every attack"]


def test_the_strongest_attack_is_the_least_of_all(table):
    assert table.cell(RESNET, tables.STRONGEST, 8.0).ours == pytest.approx(10)
    strongest = table.cell(PURIFIED, tables.STRONGEST, 8.0)
    assert strongest.ours == pytest.approx(60) and strongest.paper == 83
    worst = table.cell(PURIFIED, tables.WORST, 8.0)
    assert worst.ours == pytest.approx(55) and worst.paper is None
    assert table.cell(PURIFIED, tables.STRONGEST, 25.0) is None


def test_claims_are_the_best_with_and_without_a_purifier(table):
    (line,) = claims.claims(table)
    ours = [BARE, "10.0 (5.0 to 13.0)", DEFENDED, "60.0 (55.0 to 63.0), n 50"]
    assert line == ["8", *ours, "not measured", "0 → 83"]
    (line,) = claims.claims(table, {(PURIFIED, 8.0): "4", (RESNET, 8.0): "3"})
    assert line == ["8", *ours, "4", "0 → 83"]


def test_claims_are_by_the_strongest_attack_beyond_the_papers_too():
    layout = grid.read((RESNET, PURIFIED), (*FIVE, "apgd images=20"), (8,))
    column = grid.column("apgd images=20")
    stronger = [
        _row(text, grid.adversary_for(grid.pipeline(text, 8.0), column, 8.0), accuracy)
        for text, accuracy in ((RESNET, 0.05), (PURIFIED, 0.3))
    ]
    found = tables.Table(layout, [*_rows(), *stronger], "fashion_mnist")
    (line,) = claims.claims(found)
    ours = [BARE, "5.0 (0.0 to 8.0)", DEFENDED, "30.0 (25.0 to 33.0)"]
    assert line == ["8", *ours, "not measured", "0 → 83"]
    # The paper's own column stays what it was.
    assert found.cell(PURIFIED, tables.STRONGEST, 8.0).ours == pytest.approx(60)


def test_without_a_cell_no_attack_is_the_strongest():
    rows = [row for row in _rows() if row["attack"] != "deepfool"]
    table = tables.Table(LAYOUT, rows, "fashion_mnist")
    assert table.cell(RESNET, tables.STRONGEST, 8.0) is None and not claims.claims(
        table
    )


@pytest.mark.parametrize(
    "change",
    [
        {"eps_defend": 16},  # another purifier
        {"own": True},  # other images
        {"preset": "strong"},  # another attack
        {"eps_attack": 9.0},
    ],
)
def test_the_papers_number_stands_only_beside_what_it_measured(change):
    columns = ("bim eps=9",) if "eps_attack" in change else ("bim preset=strong",)
    columns = ("bim",) if set(change) & {"eps_defend", "own"} else columns
    row = grid.pipeline(PURIFIED, 8.0)
    adversary = grid.adversary_for(row, grid.column("bim"), 8.0)
    changed = _row(PURIFIED, adversary, 0.7) | change
    known = grid.column(columns[0]) if "preset" not in change else None
    column = known or grid.Column("bim", "strong")
    layout = grid.Grid((PURIFIED,), (column,), (8.0,))
    table = tables.Table(layout, [changed], "fashion_mnist")
    cell = table.cell(PURIFIED, str(column), 8.0)
    assert cell.ours == pytest.approx(70) and cell.paper is None


def test_the_papers_strongest_is_that_of_its_five_attacks():
    layout = grid.Grid((RESNET,), (grid.column("bim"),), (8.0,))
    table = tables.Table(layout, _rows(), "fashion_mnist")
    strongest = table.cell(RESNET, tables.STRONGEST, 8.0)
    assert strongest.ours == pytest.approx(10) and strongest.paper is None


def test_attacks_behind_a_median_and_on_the_bare_classifier_are_two_cells():
    squeezed = "other + squeeze"
    row = grid.pipeline(squeezed, 8.0)
    layout = grid.Grid((squeezed,), (grid.column("bim"),), (8.0,), ("other",))
    behind, bare = (
        grid.adversary_for(row, grid.column("bim"), 8.0, source)
        for source in (None, "other")
    )
    rows = [_row(squeezed, behind, 0.3), _row(squeezed, bare, 0.8)]
    table = tables.Table(layout, rows, "fashion_mnist")
    assert table.cell(squeezed, "bim", 8.0).ours == pytest.approx(30)
    # Made on its own classifier, it is not transferred.
    assert table.cell(squeezed, "bim", 8.0, "other") is None
    with pytest.raises(ValueError, match="two rows for one cell"):
        tables.Table(layout, rows + rows[:1], "fashion_mnist")


def test_an_unknown_column_is_no_clean_one(table):
    with pytest.raises(KeyError):
        table.cell(RESNET, "bin", 8.0)


def test_departures_are_outside_the_interval_and_five_points_away(table):
    found = {(line[0], line[1]) for line in paper_tables.departures(table)}
    assert (PURIFIED, "bim") in found and (RESNET, "bim") in found
    assert (RESNET, "clean") not in found  # 90 and 93
    cell = tables.Cell(50, 44, 56, 10, paper=55.5)
    assert not cell.departs  # inside
    assert not tables.Cell(50, 48, 52, 10, paper=54.5).departs  # near
    assert tables.Cell(50, 48, 52, 10, paper=55.5).departs
    assert not tables.Cell(50, 48, 52, 10).departs


def test_tables_show_every_cell_and_leave_gaps_empty(table):
    shown = table.show(report.markdown_table)
    clean = "80.0 (75.0 to 83.0), paper 88 (-8.0)"
    assert f"| fashion_mnist/resnet + purify | {clean} |" in shown
    assert "Transferred: made on other, eps 8" in shown
    assert "eps 25" in shown and "75.0 (70.0 to 78.0)" in shown
    header, lines = table.lines(25.0)
    attacks = ["rand", "fgsm", "bim", "deepfool", "cw"]
    assert header == ["eps 25", "clean", *attacks, "strongest", "every attack"]
    header, _ = table.lines(8.0, "other")
    assert header == ["eps 8", "fgsm", "bim", "deepfool", "cw", "strongest"]
    # Clean images need no eps.
    assert all(line[1] and not any(line[2:]) for line in lines)


def test_a_terminal_shows_intervals_below_and_says_once_how_many_images(table):
    lines = table.show().splitlines()
    assert lines[0].split() == "eps 8 clean rand fgsm bim deepfool cw strongest".split()
    assert lines[1].split() == ["n", "50"]
    at = lines.index(next(line for line in lines if "+ purify" in line))
    assert lines[at - 1].startswith(f"{RESNET}  ")
    assert lines[at - 1].split()[1:3] == ["80.0", "(88)"]
    assert lines[at].split()[:3] == ["+", "purify", "75.0-83.0"]
    # Of the strongest attacks one is of fewer images.
    assert lines[at + 1].split() == ["n", "50"]


@pytest.mark.parametrize("dataset", ["cifar10", "fashion_mnist"])
def test_the_papers_tables_fit_a_terminal(dataset):
    """With everything that the Markdown has but differences."""
    found = paper_tables.table_of(dataset)
    shown = found.show()
    assert max(map(len, shown.splitlines())) <= 100
    header, lines = found.lines(found.layout.eps[0])
    for text in header[1:]:  # long ones in two lines
        assert all(word in shown for word in text.split())
    for eps in found.layout.eps:
        for text in found.layout.rows:
            for name in found.columns():
                for part in found.cell(text, name, eps).short(told=True).split("\n"):
                    assert part in shown


def test_only_on_the_papers_data_sets_is_the_paper_spoken_of(table):
    given = data.Input("test", np.zeros((100, 2, 2, 1), np.uint8), None, [], False)
    told = evaluating._legend(given, _rows(), table)
    assert "n where there are fewer" in told and "in brackets the paper's" in told
    own = tables.Table(LAYOUT, _rows(), "pets")
    told = evaluating._legend(given, _rows(), own)
    assert (
        "paper" not in told + own.show()
        and "strongest: the lowest accuracy under any of" in told
    )


@pytest.mark.parametrize(
    "cell, percent",
    [
        (("fashion_mnist", "resnet", "normal", "none", "bim", 25), 0),
        (("fashion_mnist", "vgg", "normal", "purify", "strongest", 25), 82),
        (
            ("fashion_mnist", "resnet", "adversarial_fgsm", "purify_adaptive", "cw", 8),
            89,
        ),
        (("cifar10", "resnet", "normal", "purify", "none", 16), 88),
        (("cifar10", "resnet", "label_smoothing", "none", "fgsm", 16), 28),
        (("cifar10", "resnet", "adversarial_fgsm", "squeeze", "strongest", 2), 55),
        (("cifar10", "resnet", "normal", "purify", "bim", 4), None),
        (("mnist", "cnn", "normal", "none", "bim", 8), None),
    ],
)
def test_the_papers_numbers(cell, percent):
    assert published.accuracy(*cell) == percent


@pytest.mark.parametrize("dataset, sizes", [("fashion_mnist", 2), ("cifar10", 3)])
def test_every_published_row_is_whole_and_its_strongest_attack_is_one_of_it(
    dataset, sizes
):
    cells = published._PERCENT[dataset]
    assert len(cells) == 11 * 7 * sizes
    for (*row, attack, eps), percent in cells.items():
        if attack == "strongest":
            attacked = ("rand", "fgsm", "bim", "deepfool", "cw")
            least = min(cells[*row, name, eps] for name in attacked)
            # To a point: that is how the paper rounds.
            assert abs(percent - least) <= 1, (row, eps)
