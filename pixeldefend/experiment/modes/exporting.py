"""The mode `export`: a defence as a program, or a model in the hub's layout."""

import time

from pixeldefend.experiment import artefacts, files, hub, zoo
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.workdir import Workdir, user_errors

WHAT = (*artefacts.WHAT, "weights")


def export(config: inputs.Config, workdir: Workdir) -> None:
    """Exports a standalone program, or weights for the Hugging Face Hub."""
    del workdir  # all that is written goes to export.to
    settings = config.export
    with user_errors():
        if not settings.to:
            raise ValueError("export.to is missing: name a folder to write to")
        if settings.what not in WHAT:
            known = ", ".join(WHAT)
            raise ValueError(f"export.what must be one of {known}: {settings.what!r}")
    if settings.what == "weights":
        return _weights(config)
    with user_errors():
        folder = files.output_folder(settings.to, "export.to")
        made = _artefact(config)
    begun = time.perf_counter()
    with user_errors():
        told = artefacts.write(folder, made)
    print(
        f"{settings.what} for {' and '.join(told['platforms'])}, "
        f"{told['bytes'] / 2**20:.1f} MiB, traced in {time.perf_counter() - begun:.0f} "
        f"s: {folder / artefacts.PROGRAM}; {folder / artefacts.TOLD} says how to call "
        "it"
    )


def _weights(config: inputs.Config) -> None:
    """The model of `export.model`, of any kind."""
    settings = config.export
    with user_errors():
        kind = inputs.kind(config, "export")
        weights = config[kind].weights
        found = zoo.load_released(weights)
        if found.card["kind"] != kind:
            raise ValueError(f"{weights} is a {found.card['kind']}, not a {kind}")
        inputs.check_dataset(config, weights, found.card)
        folder = hub.check(settings.to, "export.to", settings.license)
    hub.write(folder, weights, found, settings.license)
    print(f"{weights} written to {folder}")


def _artefact(config: inputs.Config) -> artefacts.Artefact:
    """What the config asks for, with the purifier of `purify`."""
    settings = config.export
    what = settings.what
    model = inputs.density_model(config)
    inputs.check_dataset(config, config.pixelcnn.weights, model.card)
    classifier = inputs.classifier(config) if what == "defence" else None
    if classifier is not None:
        inputs.check_dataset(config, config.classifier.weights, classifier.card)
    scored = what == "score"
    return artefacts.make(
        model,
        what,
        eps=None if scored else config.purify.eps,
        reference=zoo.load_reference(config.pixelcnn.weights) if scored else None,
        classifier=classifier,
        platforms=settings.platforms,
        batch=settings.batch,
        field="export.",
    )
