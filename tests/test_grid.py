import itertools

import pytest

from pixeldefend import attacks
from pixeldefend.defences import DEFENCES, base
from pixeldefend.experiment import grid


def test_a_row_is_weights_and_defences_in_their_order():
    found = grid.pipeline("a/b-fgsm{eps} + purify + squeeze", 25.0)
    assert found == grid.Pipeline("a/b-fgsm25", ("purify", "squeeze"))
    assert found.defence == "purify+squeeze"
    assert str(found) == "a/b-fgsm25 + purify + squeeze"
    assert grid.pipeline("a/b", 0.5) == grid.Pipeline("a/b")
    assert grid.Pipeline("a/b").defence == "none"
    # A folder may have a plus in its name.
    assert grid.pipeline("runs/a+b + squeeze", 8).classifier == "runs/a+b"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must begin with the weights"),
        ("purify", "must begin with the weights"),
        (
            "a + cook",
            "unknown defence 'cook' .* squeeze, median3, .*purify, purify_adaptive",
        ),
    ],
)
def test_rows_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        grid.pipeline(text, 8.0)


def test_an_attack_has_a_name_and_options():
    assert grid.column("bim") == grid.Column("bim", "paper", 0, None)
    assert grid.column("cw images=200 preset=code") == grid.Column("cw", "code", 200)
    assert grid.column("fgm eps=400").eps == 400
    # Without a ball of levels there is nothing that the table's eps could mean.
    assert grid.column("gaussian_blur").eps == float("inf")
    names = ("bim", "cw preset=code", "gaussian_blur", "fgm eps=400")
    titles = ["bim", "cw code", "gaussian_blur", "fgm 400"]
    assert [str(grid.column(name)) for name in names] == titles


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "unknown attack ''"),
        ("bim2", "unknown attack 'bim2': one of rand"),
        ("bim preset=x", "no preset 'x'"),
        ("bim 8", "'8' is none of preset=, images=, eps="),
        ("bim images=many", "many"),
        ("bim images=-1", "must not be negative"),
        ("bim eps=-1", "must be a number and not negative"),
        ("bim eps=nan", "must be a number and not negative"),
        ("bim through=x", "through= must be one of bpda"),
        ("rand through=bpda", "rand ignores the model"),
    ],
)
def test_attacks_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        grid.column(text)


@pytest.mark.parametrize(
    "rows, columns, eps, message",
    [
        ((), ("bim",), (8,), "at least one row"),
        (("a",), ("bim",), (), "one eps"),
        (("a",), ("bim",), (-8,), "eps_attack must be a number"),
        (("a",), ("bim", "bim preset=paper"), (8,), "attack 'bim' is given twice"),
        (("a", "a"), ("bim",), (8,), "row 'a' is given twice"),
        (("a8", "a{eps}"), ("bim",), (8,), "row 'a8' is given twice"),
        (("a",), ("bim",), (8, 8.0), "eps '8' is given twice"),
        ((1,), ("bim",), (8,), "rows must be strings: 1"),
        (("a",), (1,), (8,), "attacks must be strings: 1"),
        (("a",), ("bim",), ("x",), "eps_attack must be numbers"),
    ],
)
def test_tables_that_are_none(rows, columns, eps, message):
    with pytest.raises(ValueError, match=message):
        grid.read(rows, columns, eps)


def test_attacks_see_the_classifier_and_the_median_and_nothing_else():
    bare, squeezed, purified = (
        grid.pipeline(text, 8.0) for text in ("a", "a + squeeze", "a + purify")
    )
    bim, cw, rand = map(grid.column, ("bim", "cw", "rand"))
    assert grid.adversary_for(bare, bim, 8.0).seen == "classifier"
    assert grid.adversary_for(squeezed, bim, 8.0).seen == "median+classifier"
    assert grid.adversary_for(squeezed, cw, 8.0).seen == "classifier"
    # So images are shared wherever the attacker sees the same.
    assert grid.adversary_for(purified, bim, 8.0) == grid.adversary_for(bare, bim, 8.0)
    assert grid.adversary_for(squeezed, cw, 8.0) == grid.adversary_for(bare, cw, 8.0)
    other = grid.pipeline("b", 8.0)
    assert grid.adversary_for(bare, rand, 8.0) == grid.adversary_for(other, rand, 8.0)
    transferred = grid.adversary_for(squeezed, bim, 8.0, "b")
    assert transferred == grid.adversary_for(other, bim, 8.0)
    threats = [
        grid.threat(bare, grid.adversary_for(bare, bim, 8.0)),
        grid.threat(squeezed, grid.adversary_for(squeezed, bim, 8.0)),
        grid.threat(purified, grid.adversary_for(purified, bim, 8.0)),
        grid.threat(purified, transferred),
        grid.threat(bare, grid.adversary_for(bare, rand, 8.0)),
        grid.threat(bare, grid.Adversary(grid.CLEAN)),
    ]
    assert threats == ["white-box", "grey-box", "grey-box", "transfer", None, None]


def test_slopes_are_told_apart():
    row = grid.pipeline("a/b + purify", 8)
    one, other = (
        grid.adversary_for(row, grid.column(f"bim through={slope}"), 8)
        for slope in ("bpda", "expectation")
    )
    assert one != other and str(one) != str(other)
    assert grid.threat(row, one) == grid.threat(row, other) == "white-box"
    bare = grid.pipeline("a/b", 8)
    alike = {
        grid.adversary_for(bare, grid.column(f"bim through={slope}"), 8)
        for slope in ("bpda", "expectation")
    }
    assert len(alike) == 1  # in front of no purifier there is nothing to look through


def test_only_who_is_told_to_looks_through_purifiers():
    through = grid.column("bim through=bpda")
    assert str(through) == "bim (bpda)"
    bare, both = (grid.pipeline(t, 8.0) for t in ("a", "a + purify + squeeze"))
    adaptive = grid.pipeline("a + purify_adaptive", 8.0)
    # Where nothing purifies it is the attack itself.
    plain = grid.column("bim")
    assert grid.adversary_for(bare, through, 8.0) == grid.adversary_for(
        bare, plain, 8.0
    )
    adversary = grid.adversary_for(both, through, 8.0)
    assert adversary.seen == "purify+median+classifier"
    assert grid.threat(both, adversary) == "grey-box"  # the colours are not seen
    adversary = grid.adversary_for(adaptive, through, 8.0)
    assert adversary.seen == "purify_adaptive+classifier"
    assert grid.threat(adaptive, adversary) == "white-box"
    moved = grid.adversary_for(adaptive, through, 8.0, "b")
    assert moved.through == () and grid.threat(adaptive, moved) == "transfer"


def test_columns_that_come_to_the_same_share_the_larger_set():
    columns = ("bim images=5", "bim images=9 through=bpda", "fgsm", "fgsm eps=8")
    found = grid.read(("a", "a + purify"), columns, (8, 25))
    bare, purified = (grid.pipeline(text, 8.0) for text in found.rows)
    one, other, *_ = found.attacks_on(bare, 8.0)
    assert one == other and one.images == 9
    one, other, *_ = found.attacks_on(purified, 8.0)
    assert (one.images, other.images) == (5, 9)
    keys = [
        (row, adversary.attack, adversary.eps, adversary.source, adversary.through)
        for row, adversary in found.cells()
    ]
    assert len(set(keys)) == len(keys)


def test_an_infinite_ball_is_told_where_it_is_not_the_usual_one():
    assert str(grid.column("fgsm eps=inf")) == "fgsm inf"
    assert str(grid.column("gaussian_blur")) == "gaussian_blur"


def test_sources_take_the_network_of_the_eps_too():
    found = grid.read(("a",), ("bim",), (8, 25), ("f{eps}",))
    moved = {
        adversary.source for _, adversary in found.cells() if adversary.source != "a"
    }
    assert moved == {None, "f8", "f25"}


def test_every_attack_that_looks_is_made_on_the_rows_classifier():
    row = grid.pipeline("a", 8.0)
    for name, known in attacks.ATTACKS.items():
        adversary = grid.adversary_for(row, grid.column(name), 8.0)
        assert (adversary.source == "a") is known.looks
        assert (adversary.eps == 8.0) is (known.norm == "linf")


def test_a_grid_has_each_cell_once_and_all_of_them():
    rows = ("a", "f{eps}", "f{eps} + purify")
    found = grid.read(rows, ("rand", "bim"), (8, 25), ("b",))
    cells = list(found.cells())
    assert len(set(cells)) == len(cells)
    pairs = {
        (str(row), adversary.attack, adversary.eps, adversary.source)
        for row, adversary in cells
    }
    for text, eps in itertools.product(rows, (8.0, 25.0)):
        name = text.replace("{eps}", f"{eps:g}")
        weights = name.split(" + ")[0]
        assert (name, "none", 0.0, None) in pairs
        assert (name, "rand", eps, None) in pairs
        assert (name, "bim", eps, weights) in pairs
        assert (name, "bim", eps, "b") in pairs
    # Clean a once; f8 and f25 and what is in front of them are others.
    assert len(cells) == (1 + 4) + 2 * 3 * (1 + 2)  # clean; rand; bim own and moved
    assert len(found.pipelines()) == 5


def test_rows_name_autoencoders_and_detectors_and_the_models_that_they_take():
    taken = {
        "squeeze": set(),
        "median3": set(),
        "total_variation": set(),
        "bit_depth3": set(),
        "mirror": set(),
        "jpeg75": set(),
        "jpeg50": set(),
        "jpeg20": set(),
        "purify": {"density_model"},
        "purify_adaptive": {"density_model"},
        "purify_graded": {"density_model"},
        "puvae": {"puvae"},
        "magnet": {"magnet"},
        "reject_p_value": {"density_model"},
        "reject_rmse": {"puvae"},
        "reject_magnet": {"magnet"},
    }
    assert set(DEFENCES) == set(taken)
    for name, models in taken.items():
        found = grid.pipeline(f"a + {name}", 8.0)
        assert found.defences == (name,) and found.models == models
        assert bool(found.detectors) is name.startswith("reject_")
        with pytest.raises(ValueError, match="must begin with the weights"):
            grid.pipeline(name, 8.0)
    both = grid.pipeline("a + reject_magnet + squeeze + reject_rmse + puvae", 8.0)
    assert both.defence == "reject_magnet+squeeze+reject_rmse+puvae"
    assert both.models == {"puvae", "magnet"} and both.detectors == (
        "reject_magnet",
        "reject_rmse",
    )
    bare = grid.pipeline("a", 8.0)
    assert bare.models == set() and not bare.detectors


def test_levels_may_be_left_as_they_are_found():
    whole, found = map(grid.column, ("bim", "bim levels=fractional"))
    assert found == grid.Column("bim", "paper", fractional=True) != whole
    assert str(found) == "bim fractional"
    found = grid.column("pgd preset=thesis levels=fractional through=bpda eps=9")
    assert str(found) == "pgd thesis 9 (bpda) fractional"
    row = grid.pipeline("a + puvae", 8.0)
    adversary = grid.adversary_for(row, found, 8.0)
    assert adversary.fractional and "fractional" in str(adversary)
    assert not grid.adversary_for(row, whole, 8.0).fractional
    # They are no images of each other's.
    both = grid.read(("a",), ("bim images=5", "bim levels=fractional images=9"), (8,))
    one, other = both.attacks_on(grid.pipeline("a", 8.0), 8.0)
    assert (one.images, one.fractional) == (5, False)
    assert (other.images, other.fractional) == (9, True)


@pytest.mark.parametrize(
    "text, message",
    [
        ("bim levels=whole", "levels= must be fractional"),
        ("bim levels", "'levels' is none of .* levels="),
        ("rand levels=fractional", "rand gives whole levels only"),
        ("deepfool levels=fractional", "deepfool gives whole levels only"),
        ("cw levels=fractional", "cw gives whole levels only"),
    ],
)
def test_levels_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        grid.column(text)


@pytest.mark.parametrize("name", ["puvae", "magnet"])
def test_autoencoders_are_seen_by_who_is_told_to(name):
    row, bare = grid.pipeline(f"a + {name}", 8.0), grid.pipeline("a", 8.0)
    blind = grid.adversary_for(row, grid.column("bim"), 8.0)
    assert blind == grid.adversary_for(bare, grid.column("bim"), 8.0)
    assert grid.threat(row, blind) == "grey-box" and blind.gradient == ""
    for slope in base.GRADIENTS:
        adversary = grid.adversary_for(row, grid.column(f"bim through={slope}"), 8.0)
        assert (adversary.through, adversary.gradient) == ((name,), slope)
        assert adversary.seen == f"{name}+classifier"
        assert grid.threat(row, adversary) == "white-box"
        moved = grid.adversary_for(row, grid.column(f"bim through={slope}"), 8.0, "b")
        assert (moved.through, moved.gradient) == ((), "")
        assert grid.threat(row, moved) == "transfer"


def test_purifiers_are_seen_in_the_order_in_which_an_image_passes_them():
    through = grid.column("bim through=bpda")
    for first, second in itertools.permutations(("purify", "puvae", "magnet"), 2):
        row = grid.pipeline(f"a + {first} + {second}", 8.0)
        adversary = grid.adversary_for(row, through, 8.0)
        assert adversary.through == (first, second)
        assert str(adversary).endswith(f"on a behind {second} behind {first} (bpda)")
        assert grid.threat(row, adversary) == "white-box"
    squeezed = grid.pipeline("a + magnet + squeeze", 8.0)
    adversary = grid.adversary_for(squeezed, through, 8.0)
    assert adversary.through == ("magnet", "squeeze")
    assert grid.threat(squeezed, adversary) == "grey-box"


@pytest.mark.parametrize("detector", [n for n, d in DEFENCES.items() if d.detects])
def test_who_does_not_see_a_detector_knows_less_than_all(detector):
    row = grid.pipeline(f"a + {detector} + puvae", 8.0)
    blind, through = (
        grid.adversary_for(row, grid.column(text), 8.0)
        for text in ("bim", "bim through=bpda")
    )
    assert blind.through == () and through.through == ("puvae",)
    alone = grid.pipeline(f"a + {detector}", 8.0)
    unaware = grid.adversary_for(alone, grid.column("bim through=bpda"), 8.0)
    assert unaware.through == () and unaware.gradient == ""
    for defended, adversary in ((row, blind), (row, through), (alone, unaware)):
        assert grid.threat(defended, adversary) == "grey-box"
    for defended in (row, alone):
        knowing = grid.Adversary(
            grid.EVADE, None, 8.0, source="a", through=defended.defences
        )
        assert grid.threat(defended, knowing) == "white-box"
        assert knowing.seen == "+".join((*defended.defences, "classifier"))
        other = grid.Adversary(
            grid.EVADE, None, 8.0, source="b", through=defended.defences
        )
        assert grid.threat(defended, other) == "transfer"
    # In another order it is another defence.
    turned = grid.Adversary(grid.EVADE, None, 8.0, "a", row.defences[::-1])
    assert grid.threat(row, turned) == "grey-box"
