import numpy as np
import pytest

from pixeldefend import grid, published, report, tables

RESNET, PURIFIED = "fashion_mnist/resnet", "fashion_mnist/resnet + purify"
LAYOUT = grid.read((RESNET, PURIFIED), ("bim", "cw images=50"), (8, 25), ("other",))


def _row(text, attack, eps, accuracy, *, n=100, threat="grey-box", preset=None):
    row = grid.pipeline(text, eps)
    return {
        "dataset": "fashion_mnist",
        "classifier": row.classifier,
        "network": "resnet",
        "training": "normal",
        "defence": row.defence,
        "attack": attack,
        "preset": preset,
        "eps_attack": eps,
        "threat": threat,
        "source": "other" if threat == "transfer" else row.classifier,
        "accuracy": accuracy,
        "low": accuracy - 0.05,
        "high": accuracy + 0.03,
        "n": n,
    }


@pytest.fixture
def table():
    rows = []
    for text, clean, bim, cw in ((RESNET, 0.9, 0.1, 0.2), (PURIFIED, 0.8, 0.7, 0.6)):
        rows += [
            _row(text, "none", 0.0, clean, threat=None),
            _row(text, "bim", 8.0, bim, preset="paper"),
            _row(text, "cw", 8.0, cw, preset="paper", n=50),
            _row(text, "bim", 8.0, 0.75, preset="paper", threat="transfer"),
            _row(text, tables.WORST, 8.0, bim - 0.05),
        ]
    return tables.Table(LAYOUT, rows, "fashion_mnist")


def test_cells_are_found_among_rows_beside_the_papers(table):
    cell = table.cell(PURIFIED, "bim", 8.0)
    np.testing.assert_allclose((cell.ours, cell.low, cell.high), (70, 65, 73))
    assert cell.paper == 83 and cell.difference == pytest.approx(-13)
    assert str(cell) == "70.0 ± 4.0 (83, -13.0)"
    assert table.cell(PURIFIED, "none", 8.0).paper == 88
    assert table.cell(PURIFIED, "cw", 8.0).n == 50
    # The paper transfers nothing.
    assert table.cell(PURIFIED, "bim", 8.0, "other").paper is None
    assert table.cell(PURIFIED, "bim", 25.0) is None


def test_the_strongest_attack_is_the_least_of_all(table):
    assert table.cell(RESNET, tables.STRONGEST, 8.0).ours == pytest.approx(10)
    strongest = table.cell(PURIFIED, tables.STRONGEST, 8.0)
    assert strongest.ours == pytest.approx(60) and strongest.paper == 83
    worst = table.cell(PURIFIED, tables.WORST, 8.0)
    assert worst.ours == pytest.approx(65) and worst.paper is None
    assert table.cell(PURIFIED, tables.STRONGEST, 25.0) is None


def test_claims_are_the_best_with_and_without_a_purifier(table):
    (line,) = table.claims()
    assert line == ["8", RESNET, "10.0 ± 4.0", PURIFIED, "60.0 ± 4.0", "0 to 83"]


def test_departures_are_outside_the_interval_and_five_points_away(table):
    found = {(line[0], line[1]) for line in table.departures()}
    assert (PURIFIED, "bim") in found and (RESNET, "bim") in found
    assert (RESNET, "clean") not in found  # 90 and 93
    cell = tables.Cell(50, 44, 56, 10, paper=55.5)
    assert not cell.departs  # inside
    assert not tables.Cell(50, 48, 52, 10, paper=54.5).departs  # near
    assert tables.Cell(50, 48, 52, 10, paper=55.5).departs
    assert not tables.Cell(50, 48, 52, 10).departs


def test_tables_show_every_cell_and_leave_gaps_empty(table):
    shown = table.show(report.markdown_table)
    assert "| fashion_mnist/resnet + purify | 80.0 ± 4.0 (88, -8.0) |" in shown
    assert "Transferred: made on other, eps 8" in shown
    assert "eps 25" in shown and "75.0 ± 4.0" in shown
    header, lines = table.lines(25.0)
    assert header == ["eps 25", "clean", "bim", "cw", "strongest", "every attack"]
    # Clean images need no eps.
    assert all(line[1] and not any(line[2:]) for line in lines)


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
