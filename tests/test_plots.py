"""Figures of the paper: axes, few images, and what was not measured."""

import numpy as np
import pytest

from reproduction import figures, plots


def _row(defence, attack, threat, eps, accuracy, **more):
    row = {"network": "resnet", "training": "normal", "defence": defence}
    row |= {"attack": attack, "threat": threat, "eps_attack": eps}
    row |= {"accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.05}
    return row | more


def _heights(axis):
    return [round(bar.get_height()) for bar in axis.patches]


def test_attackers_stand_side_by_side_in_a_panel_for_each_eps():
    worst = "worst_per_image"
    rows = [
        _row("purify", "none", None, 0.0, 0.9),
        _row("purify", "fgsm", "grey-box", 8.0, 0.7),
        _row("purify", "bim", "grey-box", 8.0, 0.6),
        _row("purify", "pgd", "white-box", 8.0, 0.2),
        _row("purify", worst, "white-box", 8.0, 0.1),
        _row("none", worst, "white-box", 8.0, 0.05),
        _row("purify", "bim", "grey-box", 16.0, 0.4),
        _row("purify", "bim", "transfer", 16.0, 0.3),
        _row("purify_graded", "bim", "grey-box", 16.0, 0.5, network="vgg"),
        _row("squeeze", "bim", "grey-box", 16.0, 0.1),
    ]
    figure = figures._white_box("cifar10", rows)
    first, second = figure.axes
    assert [axis.get_title("left") for axis in figure.axes] == ["eps 8", "eps 16"]
    assert _heights(first) == [5, 60, 10] and _heights(second) == [40, 50]
    words = [text.get_text() for text in second.texts]
    assert words.count("not measured") == 2 and "not measured" not in [
        text.get_text() for text in first.texts
    ]
    titles = [label.get_text() for label in second.get_xticklabels()]
    assert titles == [
        "ResNet\nalone",
        "ResNet\n+ PixelDefend",
        "VGG\n+ PixelDefend,\ngraded",
    ]
    assert first.get_ylim() == second.get_ylim()
    # Told apart without colours.
    assert len({bar.get_hatch() for bar in first.patches}) == 2


def test_a_classifier_of_its_own_eps_is_one_defence():
    names = {
        figures._name(
            _row("purify_adaptive", "bim", "grey-box", 8.0, 0.5)
            | {"training": training, "classifier": name}
        )
        for training, name in (
            ("adversarial_fgsm", "a-adversarial_fgsm8"),
            ("adversarial_fgsm", "a-adversarial_fgsm25"),
        )
    }
    assert names == {"ResNet\nadversarial FGSM\n+ PixelDefend,\nadaptive"}


@pytest.mark.parametrize("count", [8, 500])
def test_p_values_have_one_pair_of_axes(count, rng):
    sets = {name: rng.uniform(size=count) ** 3 for name in "abcdefg"}
    axes = [axis for axis in plots.p_values(sets).axes if axis.get_visible()]
    assert len(axes) == 7
    assert {(*axis.get_xlim(), *axis.get_ylim()) for axis in axes} == {(0, 1, 0, 1.02)}
    for axis, ranks in zip(axes, sets.values(), strict=True):
        if count == 8:  # cumulative
            at, share = axis.lines[0].get_data()
            np.testing.assert_array_equal(at[1:-1], np.sort(ranks))
            np.testing.assert_allclose(share[1:-1], np.arange(1, 9) / 8)
        else:
            heights = [bar.get_height() for bar in axis.patches]
            wanted, _ = np.histogram(ranks, np.linspace(0, 1, 21))
            np.testing.assert_allclose(heights, wanted / count)


def test_bits_of_few_images_are_cumulative(rng):
    sets = {"clean": rng.normal(size=10), "attacked": rng.normal(size=300)}
    (axis,) = plots.densities(sets).axes
    assert not axis.patches and len(axis.lines) == 2
    sets["clean"] = rng.normal(size=100)
    (axis,) = plots.densities(sets).axes
    assert axis.patches and axis.get_ylabel() == "share of images"


def test_a_figure_is_written_as_png_and_pdf_with_the_same_bytes_each_time(tmp_path):
    for ending, begin in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        for name in "ab":
            runs = {"a": (np.array([0.1, 0.2]), np.array([4.0, 3.5]))}
            plots.save(plots.training(runs, "hours"), tmp_path / f"{name}.{ending}")
        first, second = ((tmp_path / f"{n}.{ending}").read_bytes() for n in "ab")
        assert first == second and first.startswith(begin)
