"""Rules of the Pod Security Standard "restricted"."""

from kustomize_overlays import Object, containers

VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
# Rules of the first version of the standard. Later versions have more.
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_syncookies",
}
PROFILES = {"RuntimeDefault", "Localhost"}


def violations(template: Object) -> set[str]:
    """Returns the rules of the Pod Security Standard "restricted" (Kubernetes 1.37, including "baseline") that a pod violates."""
    pod = template["spec"]
    all_containers = containers(template, "containers", "initContainers", "ephemeralContainers")
    own = pod.get("securityContext") or {}
    container_contexts = [container.get("securityContext") or {} for container in all_containers]
    contexts = [own, *container_contexts]
    capabilities = [their.get("capabilities") or {} for their in container_contexts]
    handlers = [
        container.get(probe) or {}
        for container in all_containers
        for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    ]
    handlers += [handler for container in all_containers for handler in (container.get("lifecycle") or {}).values()]
    annotations = (template["metadata"].get("annotations") or {}).items()
    armor = {value for key, value in annotations if key.startswith("container.apparmor.security.beta.kubernetes.io/")}
    linux = [context["seLinuxOptions"] for context in contexts if context.get("seLinuxOptions")]

    def everywhere(key: str, allowed) -> bool:
        """Returns whether a value is set for the pod or for each container, without a different value anywhere."""
        result = [context.get(key) for context in contexts]
        return all(allowed(item) for item in result if item is not None) and (result[0] is not None or None not in result)

    rules = {
        "host namespaces": not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")),
        "host process": not any((context.get("windowsOptions") or {}).get("hostProcess") for context in contexts),
        "privileged": not any(their.get("privileged") for their in container_contexts),
        "privilege escalation": all(their.get("allowPrivilegeEscalation") is False for their in container_contexts),
        "capabilities": all(
            "ALL" in capability.get("drop", ()) and set(capability.get("add", ())) <= {"NET_BIND_SERVICE"}
            for capability in capabilities
        ),
        "volumes": all(len(set(item) & VOLUMES) == 1 and len(item) == 2 for item in pod.get("volumes", ())),
        "host ports": not any(port.get("hostPort") for container in all_containers for port in container.get("ports", ())),
        "hosts of probes": not any((item.get(way) or {}).get("host") for item in handlers for way in ("httpGet", "tcpSocket")),
        "AppArmor": all((context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") in PROFILES for context in contexts)
        and all(item in {"", "runtime/default"} or item.startswith("localhost/") for item in armor),
        "SELinux": all(item.get("type", "") in SELINUX and not item.get("user") and not item.get("role") for item in linux),
        "proc mount": all(their.get("procMount", "Default") == "Default" for their in container_contexts),
        "seccomp": everywhere("seccompProfile", lambda item: item.get("type") in PROFILES),
        "sysctls": {item["name"] for item in own.get("sysctls", ())} <= SYSCTLS,
        "non-root": everywhere("runAsNonRoot", lambda item: item is True),
        "root": not any(context.get("runAsUser") == 0 for context in contexts),
    }
    return {rule for rule, remaining in rules.items() if not remaining}
