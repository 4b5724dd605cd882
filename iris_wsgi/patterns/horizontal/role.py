"""The members of the ensemble, here or on other servers, as the settings name them."""

from functools import partial
from pathlib import Path

import numpy as np

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import manifest_digest, member_folders
from iris_wsgi.model.golden import load_verified_model
from iris_wsgi.model.predictor import within_deadline
from iris_wsgi.model.run_timeout import RunWatchdog
from iris_wsgi.patterns.horizontal import routes
from iris_wsgi.patterns.horizontal.voting import Here, majority
from iris_wsgi.services import RoleContext
from iris_wsgi.wsgi.application import Route


def remote_ensemble(parts: RoleContext) -> list[Route]:
    """Over the members that the settings name, each of which must have the model that this release has for its species."""
    # An ensemble of members in this process asks no other server.
    from iris_wsgi.client.endpoint import Target, place_of
    from iris_wsgi.client.metrics import CallMetrics
    from iris_wsgi.client.prober import Watcher
    from iris_wsgi.patterns.horizontal.remote_members import Panel, why_no_member

    settings = parts.settings
    places = dict(pair.split("=", 1) for pair in settings.members.split(","))
    metrics = CallMetrics(parts.registry, list(places))
    digests = {name: manifest_digest(folder) for name, folder in member_folders(Path(settings.model_dir)).items()}
    row, seconds = np.array([parts.sample.row], np.float32), settings.ensemble_ms / 1000
    targets = []
    for name, url in places.items():
        place, tell = place_of(url), parts.log.event
        target = Target(name, place, metrics, tell, seconds, parts.credentials)
        watcher = Watcher(target, row, partial(why_no_member, name=name, digest=digests.get(name)))
        parts.background.add(f"look at {name}", partial(watcher.run, parts.background.is_stopping), drains=False)
        targets.append(target)
    panel = Panel(targets, settings.quorum or majority(len(targets)))
    parts.readiness.others.append(partial(routes.below_quorum, panel))
    return routes.routes(parts.model, panel, settings.abstain_below, seconds, remote=True)


def local_ensemble(parts: RoleContext) -> list[Route]:
    """Over the members in the model's folder. Raises BadModel."""
    settings, members, watch = parts.settings, {}, RunWatchdog()
    for name, folder in member_folders(Path(settings.model_dir)).items():
        model, _, _ = load_verified_model(folder)
        if model.width != parts.model.width:
            raise BadModel(f"{folder} takes {model.width} features, the whole model takes {parts.model.width}")
        if model.labels[1:] != (name,):
            raise BadModel(
                f"{folder} has a model for {', '.join(model.labels)}; it must be one of two classes, the last one {name}"
            )
        members[name] = (within_deadline(model, watch), model.digest)
    if not members:
        raise BadModel(f"{settings.model_dir}/members has no models of one species each")
    panel = Here(members, settings.quorum or majority(len(members)))
    return routes.routes(parts.model, panel, settings.abstain_below, settings.ensemble_ms / 1000, remote=False)
