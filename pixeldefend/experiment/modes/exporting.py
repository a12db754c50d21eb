"""The mode `export`: a defence as a program that runs without this package."""

import time

from pixeldefend.experiment import artefacts, files, zoo
from pixeldefend.experiment.modes import inputs
from pixeldefend.experiment.workdir import Workdir, user_errors


def export(config: inputs.Config, workdir: Workdir) -> None:
    """Writes a defence, `export.what`, as a program that runs without this package."""
    del workdir  # all that is written goes to export.to
    settings = config.export
    with user_errors():
        if not settings.to:
            raise ValueError("export.to is missing: the folder for what is exported")
        folder = files.output_folder(settings.to, "export.to")
        made = _artefact(config)
    begun = time.perf_counter()
    told = artefacts.write(folder, made)
    print(
        f"{settings.what} for {' and '.join(told['platforms'])}, "
        f"{told['bytes'] / 2**20:.1f} MiB, traced in {time.perf_counter() - begun:.0f} "
        f"s: {folder / artefacts.PROGRAM}; {folder / artefacts.TOLD} tells how to call "
        "it"
    )


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
