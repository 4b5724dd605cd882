"""Pattern horizontal microservice: an ensemble of members in this process or on other servers."""

from functools import partial
from pathlib import Path

from iris_wsgi.errors import BadModel
from iris_wsgi.model.artifact import LABELS_FILE, check_classifier, manifest_digest, member_folders, read_file, read_labels
from iris_wsgi.model.companions import label_difference, load_members
from iris_wsgi.model.predictor import RunWatchdog, within_deadline
from iris_wsgi.patterns.horizontal import routes
from iris_wsgi.patterns.horizontal.voting import LocalMembers, majority
from iris_wsgi.services import RoleContext
from iris_wsgi.wsgi.application import Route


def remote_ensemble(context: RoleContext) -> list[Route]:
    """Returns the routes over the members of IRIS_MEMBERS. Each must have this release's model of its species."""
    # Imported here, because an ensemble in this process calls no other server.
    from iris_wsgi.client.endpoint import CallMetrics, Endpoint, address_of
    from iris_wsgi.client.prober import Prober
    from iris_wsgi.patterns.horizontal.remote_members import RemoteMembers, why_not_member

    settings = context.settings
    check_classifier("horizontal", context.outputs.kind)
    urls = dict(pair.split("=", 1) for pair in settings.members.split(","))
    metrics = CallMetrics(context.registry, list(urls))
    digests = {}
    for name, folder in member_folders(Path(settings.model_dir)).items():
        labels = read_labels(read_file(folder / LABELS_FILE), str(folder / LABELS_FILE))
        if difference := label_difference(labels, name, context.model):
            raise BadModel(f"{folder} has a member of another model: {difference}")
        digests[name] = manifest_digest(folder)
    row, seconds = context.sample.rows, settings.ensemble_ms / 1000
    endpoints = []
    for name, url in urls.items():
        endpoint = Endpoint(name, address_of(url), metrics, context.log.event, seconds, context.credentials)
        prober = Prober(endpoint, row, partial(why_not_member, name=name, digest=digests.get(name)))
        context.background.add(f"probe {name}", partial(prober.run, context.background.is_stopping), drains=False)
        endpoints.append(endpoint)
    ensemble = RemoteMembers(endpoints, settings.quorum or majority(len(endpoints)))
    context.readiness.checks.append(partial(routes.below_quorum, ensemble))
    return routes.routes(context.model, ensemble, settings.abstain_below, seconds, remote=True)


def local_ensemble(context: RoleContext) -> list[Route]:
    """Returns the routes over the members in the model's folder. Raises BadModel."""
    settings, watchdog = context.settings, RunWatchdog()
    check_classifier("horizontal", context.outputs.kind)
    members = {
        name: (within_deadline(model, watchdog), model.digest)
        for name, model in load_members(Path(settings.model_dir), context.model).items()
    }
    ensemble = LocalMembers(members, settings.quorum or majority(len(members)))
    return routes.routes(context.model, ensemble, settings.abstain_below, settings.ensemble_ms / 1000, remote=False)
