"""The judge: its protocol, its verdict, and both ways to call it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import bent, draw
from processes import finish, kill, launch, rows, wait_for

import pixeldefend
from pixeldefend import attacks, keys
from pixeldefend.defences import DEFENCES, base
from pixeldefend.experiment import parallel, report, verdict
from pixeldefend.experiment.parallel import BatchMap
from pixeldefend.experiment.verdict import Line, Outcome, Verdict

PURIFY, SQUEEZE, PUVAE = (DEFENCES[n] for n in ("purify", "squeeze", "puvae"))
DETECTOR = DEFENCES["reject_p_value"]


def _kinds(lines):
    return [(line.kind, line.attack, line.gradient) for line in lines]


def test_a_classifier_alone_is_judged_by_auto_attack():
    assert _kinds(verdict.protocol([])) == [
        ("clean", "", ""),
        ("bare", "auto_attack", ""),
    ]


def test_a_defence_is_looked_through_in_every_way():
    lines = verdict.protocol([PURIFY])
    looks = [(g, a) for g in base.GRADIENTS for a in ("apgd", "pgd")]
    assert _kinds(lines) == [
        ("clean", "", ""),
        ("bare", "auto_attack", ""),
        ("transfer", "auto_attack", ""),
        *(("through", attack, gradient) for gradient, attack in looks),
        ("through", "square", "outputs"),
        ("unbounded", "apgd", "bpda"),
    ]
    options = attacks.ATTACKS["pgd"].presets["judge"]
    assert (options["steps"], options["restarts"]) == (200, 5)
    assert all(attacks.stops(line.attack, line.preset) for line in lines[3:])
    assert [line.eps(8.0) for line in lines[:2]] == [0, 8] and lines[-1].eps(8) == 255
    glance = verdict.protocol([PURIFY], "glance")
    assert len(glance) == len(lines) and glance[3:] != lines[3:]


def test_one_gradient_alone_is_less_of_the_protocol_and_said():
    lines = verdict.protocol([PURIFY], gradients=("straight_through",))
    assert {line.gradient for line in lines} == {"", "straight_through", "outputs"}
    assert _kinds(lines)[:3] == _kinds(verdict.protocol([PURIFY]))[:3]
    assert _kinds(lines)[-1] == ("unbounded", "apgd", "straight_through")
    left = verdict.left_out([PURIFY], lines)
    assert left == ("bpda", "expectation")
    assert "by bpda and expectation: the" in _verdict(left_out=left).notes()[0]
    for defences, asked in ([PURIFY], base.GRADIENTS), ([PURIFY], ()), ([SQUEEZE], ()):
        whole = verdict.protocol(defences, gradients=asked)
        assert not verdict.left_out(defences, whole)
    for defences, name in (
        ([PURIFY], "wide"),
        ([SQUEEZE], "bpda"),
        ([DETECTOR], "bpda"),
        ([], "bpda"),
    ):
        with pytest.raises(ValueError, match=f"this defence has no gradients.*{name}"):
            verdict.protocol(defences, gradients=("bpda", name))


def test_random_defences_are_attacked_over_draws():
    lines = verdict.protocol([PUVAE])
    drawn = [line.gradient for line in lines if line.preset == "rand"]
    assert drawn == ["bpda", "straight_through", "bpda"]  # the last without a bound
    assert lines[-1].kind == "unbounded"


def test_detectors_are_evaded_too_and_come_first():
    lines = verdict.protocol([DETECTOR, PURIFY])
    assert [line.gradient for line in lines if line.kind == "joint"] == list(
        base.GRADIENTS
    )
    alone = _kinds(verdict.protocol([DETECTOR]))
    assert alone[-1] == ("joint", "", "") and "through" not in {k for k, *_ in alone}
    with pytest.raises(ValueError, match="detectors only in front"):
        verdict.protocol([PURIFY, DETECTOR])


def test_without_a_bound_no_detector_hides_what_fools():
    defences = [DETECTOR, PURIFY]
    stand = {
        line.kind: verdict.standing(line, defences)
        for line in verdict.protocol(defences)
    }
    assert stand["bare"] == [False, False] and stand["unbounded"] == [False, True]
    assert stand["through"] == stand["joint"] == stand["clean"] == [True, True]


def _verdict(**more):
    """Of six images: one is lost to each attack, one to queries alone."""

    def outcome(kind, lost, attack="apgd", gradient="", **its):
        correct = np.array([i not in lost for i in range(6)])
        return Outcome(Line(kind, attack, "", gradient), correct, 2.0, **its)

    outcomes = (
        outcome("clean", [5], ""),
        outcome("bare", [5, 0, 1, 2], "auto_attack", doubts={"flat": 3}),
        outcome("transfer", [5], "auto_attack"),
        outcome("through", [5, 1], "apgd", "bpda"),
        outcome("through", [5, 2], "pgd", "bpda"),
        outcome("through", [5, 3], "square", "outputs"),
        outcome("unbounded", [5, 0, 1, 2, 3, 4], "apgd", "bpda"),
    )
    return Verdict(outcomes, 8.0, "net", "wall", **more)


def test_the_verdict_is_the_worst_case_of_each_image():
    found = _verdict()
    np.testing.assert_array_equal(found.correct, [1, 0, 0, 0, 1, 0])
    assert found.accuracy == pytest.approx(2 / 6)
    rows = found.table(report.markdown_table).splitlines()
    assert rows[0].startswith("| attack | sees | gradient | eps |")
    assert "| apgd | defence and classifier | bpda | none | 0.0 (" in rows[-2]
    assert "| worst | image by image |  | 8 | 33.3 (9.7 to 70.0) | 6 | 14 |" == rows[-1]
    tex = found.table(report.latex_table)
    assert tex.count(r"\\") == len(rows) - 1 and r"auto\_attack" in tex
    assert r"accuracy, \%" in tex


def test_what_throws_doubt_on_a_verdict_is_said():
    notes = " | ".join(_verdict(loops=True).notes())
    assert "queries alone fool 1 images that no gradient does" in notes
    assert "AutoAttack met gradients of zero (3 of 6 images)" in notes
    assert "a loop in its forward pass" in notes
    # Two of six survive alone and behind the defence.
    assert "the defence adds nothing" in notes
    assert "without a bound" not in notes and "Tramer" not in notes

    found = _verdict()
    *others, last = found.outcomes
    blind = dataclasses.replace(last, correct=np.array([1, 0, 0, 0, 0, 0], bool))
    told = dataclasses.replace(found, outcomes=(*others, blind)).notes()[0]
    assert "leaves 16.7% accuracy, where it must leave none" in told

    joint = Outcome(Line("joint", gradient="bpda"), np.ones(6, bool), 1.0)
    implied = Verdict((*found.outcomes, joint), 8.0, rejects=0.01).notes()[-1]
    assert "rejecting at most 1.0% of clean images at eps 8" in implied
    assert "at eps 4" in implied


def test_the_threat_model_is_ready_to_paste():
    text = _verdict().paragraph()
    assert "eps 8 levels (8/255)" in text and "net behind wall" in text
    assert "by bpda, outputs" in text and "33.3% (95 % interval 9.7 to 70.0)" in text
    assert "clean 83.3%; the classifier alone under AutoAttack 33.3%." in text
    alone = Verdict(_verdict().outcomes[:2], 8.0, "net")
    assert "AutoAttack (standard) on net, 6 images: 33.3%" in alone.paragraph()
    assert not alone.notes()[1:]


def test_a_random_defence_is_right_where_most_of_its_draws_are():
    labels = np.array([0, 1, 1])
    found = [np.array(a) for a in ([0, 1, 2], [0, 2, 0], [1, 1, 2])]
    through = Line("through", "apgd", "", "bpda")
    outcome = verdict.outcome(through, found, labels, 2, 1.0)
    # Class 2 is a rejection, which is right of attacked images.
    np.testing.assert_array_equal(outcome.correct, [1, 1, 1])
    np.testing.assert_array_equal(outcome.draws, [[1, 1, 1], [1, 1, 0], [0, 1, 1]])
    judged = Verdict((*_verdict().outcomes[:2], outcome), 8.0)
    assert any("a majority of 3 evaluations" in note for note in judged.notes())
    clean = verdict.outcome(Line("clean"), found, labels, 2, 1.0)
    np.testing.assert_array_equal(clean.correct, [1, 1, 0])


@dataclasses.dataclass(frozen=True)
class Wall(base.Defence):
    """Rounds levels; its attacker gets no gradient at all."""

    name = "wall"

    def compute(self, params, images, key):
        coarse = 16 * jnp.round(base.whole(images).astype(jnp.float32) / 16)
        return {"images": base.whole(coarse)}

    def view(self, params, images, key, gradient):
        images = jax.lax.stop_gradient(images)
        return self.compute(params, images, key)["images"].astype(images.dtype)


class Glass(Wall):
    """The same, for an attacker who looks through it."""

    name = "glass"
    view = base.Defence.view


@pytest.fixture(scope="module")
def judged():
    """A wall that hides its gradient, and one that does not."""
    variables, images, labels = draw(np.random.default_rng(0), 24)
    labels = np.asarray(labels).copy()
    labels[0] = (labels[0] + 1) % 5

    def counted(made):
        class Counted(BatchMap):
            def __init__(self, *arguments):
                made.append(arguments)
                super().__init__(*arguments)

        return Counted

    def judge(kind, monkeypatch):
        told, made = [], []
        monkeypatch.setattr(parallel, "BatchMap", counted(made))
        found = pixeldefend.judge(
            bent,
            variables,
            images,
            labels,
            eps=5.0,
            defences=[kind()],
            params=[{}],
            budget="glance",
            batch=12,
            tell=told.append,
        )
        count = len(found.outcomes)
        # Two for what is judged, AutoAttack, and each look; no other without a bound.
        assert len(made) == 3 + len(found.of(verdict.THROUGH))
        assert len(told) == count and told[1].startswith(f"line 2 of {count}: ")
        return found

    with pytest.MonkeyPatch.context() as monkeypatch:
        found = judge(Wall, monkeypatch), judge(Glass, monkeypatch)
    return variables, images, labels, *found


@pytest.mark.slow
def test_a_defence_that_hides_its_gradient_is_found_out(judged):
    *_, hidden, seen = judged
    assert any("where it must leave none" in note for note in hidden.notes())
    assert not any("must leave none" in note for note in seen.notes())
    # Who looks through it, with the gradient of what it hides, finds more.
    through = [np.mean(v.of(verdict.THROUGH)[0].correct) for v in (hidden, seen)]
    assert through[1] < through[0]


@pytest.mark.slow
def test_any_classifier_and_defence_are_judged_on_what_is_returned(judged):
    variables, images, labels, _, seen = judged
    coarse = Wall().compute({}, images, None)["images"].astype(jnp.float32)
    clean = np.asarray(jnp.argmax(bent(variables, coarse), -1)) == labels
    (first,) = seen.of(verdict.CLEAN)
    np.testing.assert_array_equal(first.correct, clean)
    (bare,) = seen.of(verdict.BARE)
    key = keys.for_images(jax.random.key(0), jnp.arange(24, dtype=jnp.uint32))
    found, _ = attacks.auto_attack(
        bent, variables, images, jnp.asarray(labels), key, eps=5.0
    )
    guesses = jnp.argmax(bent(variables, found.astype(jnp.float32)), -1)
    np.testing.assert_array_equal(bare.correct, np.asarray(guesses) == labels)
    every = [one.correct for one in seen.of("transfer", "through")]
    np.testing.assert_array_equal(seen.correct, np.all(every, 0))


@dataclasses.dataclass(frozen=True)
class Rough(base.Detector):
    """Rejects images whose neighbours differ."""

    name = "rough"

    def scores(self, params, images, key):
        images = images.astype(jnp.float32)
        return jnp.mean(jnp.abs(jnp.diff(images, axis=2)), (1, 2, 3))[None]


@pytest.mark.slow
def test_a_detector_is_evaded_by_who_knows_it(rng):
    variables, images, labels = draw(rng, 16)
    scores = Rough().scores({}, images, None)
    task = bent, variables, images, labels

    def judge(threshold):
        return pixeldefend.judge(
            *task,
            eps=6.0,
            defences=[Rough()],
            params=[{"threshold": jnp.full(1, threshold)}],
            lines=[Line("clean"), Line("bare", "pgd"), Line("joint")],
            rejects=0.1,
            tell=None,
        )

    lenient, strict = judge(jnp.inf), judge(jnp.sort(scores[0])[7])
    # What is rejected is wrong of clean images, and right of attacked ones.
    assert lenient.outcomes[0].correct.all()
    assert strict.outcomes[0].correct.sum() == 8
    assert not np.all(lenient.outcomes[2].correct)
    assert strict.outcomes[2].correct.sum() > lenient.outcomes[2].correct.sum()
    # With nothing to get past, evading is to fool the classifier.
    assert (
        lenient.outcomes[2].correct.mean() <= lenient.outcomes[1].correct.mean() + 0.1
    )


def test_what_the_judge_cannot_take_is_said(rng):
    variables, images, labels = draw(rng, 3)
    task = bent, variables, images, labels
    with pytest.raises(ValueError, match="budget must be one of whole, glance"):
        pixeldefend.judge(*task, eps=1.0, budget="huge")
    with pytest.raises(ValueError, match="one CLEAN and one BARE"):
        pixeldefend.judge(*task, eps=1.0, lines=[Line("clean")])
    with pytest.raises(ValueError, match="defences need as many params"):
        pixeldefend.judge(*task, eps=1.0, defences=[Glass()])


@pytest.mark.slow
def test_a_judge_that_was_killed_ends_with_the_same_rows(tmp_path):
    options = [
        "--config.classifier.weights=fashion_mnist/cnn_a",
        "--config.judge.defence=squeeze",
        "--config.judge.images=6",
        "--config.judge.batch=2",
    ]
    whole = tmp_path / "whole"
    told, _ = finish(launch("judge", f"--workdir={whole}", *options))[0]
    lines = ("auto_attack", "apgd", "pgd", "square", "worst", "Threat model")
    assert all(line in told for line in lines)
    assert "\nline 1 of 7: none (clean): " in told and " with compilation; " in told
    assert "this was a glance" in told  # on the bundled sample
    started = launch("judge", f"--workdir={tmp_path / 'killed'}", *options)
    wait_for(tmp_path / "killed", "adversarial/*", started)
    kill(started)
    finish(launch("judge", f"--workdir={tmp_path / 'killed'}", *options))
    assert rows(whole / "rows.jsonl") == rows(tmp_path / "killed" / "rows.jsonl")
    kinds = [row["attack"] for row in rows(whole / "rows.jsonl")]
    assert kinds[:3] == ["none", "auto_attack", "auto_attack"]
    assert kinds[-1] == "worst_per_image"
    page = (whole / "verdict.md").read_text()
    assert (
        page.startswith("| attack |")
        and "\\toprule" in (whole / "verdict.tex").read_text()
    )
