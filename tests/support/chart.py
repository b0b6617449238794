"""The Helm chart, rendered by Helm, and its resources checked against Kubernetes' schemas."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "order-relay"
# Beside Python, where helm-binary puts it, or anywhere.
HELM = shutil.which("helm", path=Path(sys.executable).parent) or shutil.which("helm")
VALUES = Path(__file__).with_name("charts")
# The oldest and the newest that are checked. Helm itself assumes another one.
KUBERNETES = ("1.27.0", "1.34.0")
NAMESPACE = "orders"
RELEASE = "relay"
# Models generated from the projects' CRDs, in cloudcoil's packages.
CUSTOM = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "cloudcoil.models.prometheus_operator.v1",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "cloudcoil.models.prometheus_operator.v1",
    ("keda.sh/v1alpha1", "ScaledObject"): "cloudcoil.models.keda.v1alpha1",
}

Resource = dict[str, Any]


def unavailable_reason() -> str | None:
    """Return why the chart cannot be rendered here, or None."""
    return "helm is not installed" if HELM is None else None


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Helm; any status is OK."""
    return subprocess.run([HELM or "helm", *arguments], capture_output=True, text=True, check=False)


def template(
    *arguments: str | Path, kubernetes: str = KUBERNETES[-1]
) -> subprocess.CompletedProcess[str]:
    """Render the chart with further arguments, such as ``--set``."""
    return helm(
        *("template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", kubernetes),
        *arguments,
    )


class Rendered:
    """The resources that the chart makes of a file of values."""

    def __init__(self, values: str | None, kubernetes: str = KUBERNETES[-1]) -> None:
        chosen = ("--values", VALUES / f"{values}.yaml") if values else ()
        done = template(*chosen, kubernetes=kubernetes)
        assert done.returncode == 0, done.stderr
        self.resources: list[Resource] = [one for one in yaml.safe_load_all(done.stdout) if one]

    def all(self, kind: str) -> list[Resource]:
        """The resources of a kind."""
        return [one for one in self.resources if one["kind"] == kind]

    def one(self, kind: str) -> Resource:
        """The only resource of a kind."""
        (found,) = self.all(kind)
        return found

    def workload(self, consumer: str) -> Resource:
        """The Deployment or StatefulSet of a consumer."""
        (found,) = (
            one
            for one in [*self.all("Deployment"), *self.all("StatefulSet")]
            if one["metadata"]["labels"]["app.kubernetes.io/component"] == consumer
        )
        return found

    def pod(self, consumer: str) -> Resource:
        """The specification of a consumer's pods."""
        return dict(self.workload(consumer)["spec"]["template"]["spec"])

    def environment(self, consumer: str) -> dict[str, str]:
        """What a consumer's container gets, by name."""
        (settings,) = (
            dict[str, str](one["data"])
            for one in self.all("ConfigMap")
            if not any(name.endswith(".json") for name in one["data"])
        )
        (container,) = self.pod(consumer)["containers"]
        own = {one["name"]: one.get("value", "") for one in container["env"]}
        return settings | own


def notes_of(values: str, folder: Path) -> str:
    """What Helm prints after an install, rendered as a template of a chart copy."""
    copy = folder / CHART.name
    shutil.copytree(CHART, copy)
    notes = (copy / "templates" / "NOTES.txt").read_text(encoding="utf-8")
    (copy / "templates" / "notes.yaml").write_text(
        f'{{{{- define "notes" -}}}}{notes}{{{{- end -}}}}\n'
        '{{ dict "notes" (include "notes" .) | toYaml }}\n',
        encoding="utf-8",
    )
    done = helm(
        *("template", RELEASE, copy, "--namespace", NAMESPACE, "--kube-version", KUBERNETES[-1]),
        *("--values", VALUES / f"{values}.yaml", "--show-only", "templates/notes.yaml"),
    )
    assert done.returncode == 0, done.stderr
    return str(yaml.safe_load(done.stdout)["notes"])


def problem(resource: Resource, kubernetes: str) -> str | None:
    """Say what is wrong with a resource: an unknown field, a missing one, a wrong type."""
    module = CUSTOM.get((resource["apiVersion"], resource["kind"]))
    if module is not None:
        pydantic = importlib.import_module("pydantic")
        model = getattr(importlib.import_module(module), resource["kind"])
        try:
            model.model_validate(resource, extra="forbid")
        except pydantic.ValidationError as error:
            return str(error)
        return None
    validator = importlib.import_module("kubernetes_validate")
    try:
        validator.validate(resource, kubernetes, strict=True)
    except (validator.ValidationError, validator.SchemaNotFoundError) as error:
        return str(error.message)
    return None
