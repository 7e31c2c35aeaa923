"""The overlays of deploy/kuberay as documents, and KubeRay's and Kubernetes' schemas, strict."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import yaml

from deploy.kuberay.render import OVERLAYS, place

KUBERNETES = "1.33"
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
"""KubeRay 1.7 declares the field as any string and refuses others only when it runs."""
POLICIES = ("DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone")
OPERATOR_KINDS = ("PodMonitor", "PrometheusRule")
"""Kinds of the Prometheus Operator, whose schemas are not here."""

FREE = {"type": "object"}
TEXT, NUMBER, YES_OR_NO = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
WORDS = {"type": "object", "additionalProperties": TEXT}


def closed(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


RULES = closed({"ingressRules": listed(FREE)})
GROUP = {"rayStartParams": WORDS, "template": FREE}
CLUSTER = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed({"mode": {"enum": ["disabled", "token"]}}),
        "enableInTreeAutoscaling": YES_OR_NO,
        "autoscalerOptions": closed(
            {
                "version": {"enum": ["v1", "v2"]},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "idleTimeoutSeconds": NUMBER,
                "resources": FREE,
                "securityContext": FREE,
            }
        ),
        "networkPolicy": closed(
            {
                "mode": {"enum": ["DenyAll", "DenyAllIngress", "DenyAllEgress"]},
                "head": RULES,
                "worker": RULES,
            }
        ),
        "gcsFaultToleranceOptions": closed(
            {
                "backend": {"enum": ["redis", "rocksdb"]},
                "storage": closed(
                    {
                        "accessModes": listed(TEXT),
                        "size": TEXT,
                        "deletionPolicy": {"enum": ["DeleteWithCluster", "Retain"]},
                    }
                ),
            }
        ),
        "historyServerOptions": closed(
            {"collectorOptions": closed({"image": TEXT, "env": listed(FREE), "resources": FREE})}
        ),
        "headGroupSpec": closed(GROUP, ("template",)),
        "workerGroupSpecs": listed(
            closed(
                GROUP
                | {"groupName": TEXT, "labels": WORDS}
                | dict.fromkeys(
                    ("replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds"), NUMBER
                ),
                ("groupName", "minReplicas", "maxReplicas", "template"),
            )
        ),
    },
    ("headGroupSpec",),
)
JOB = closed(
    {
        "entrypoint": TEXT,
        "submissionMode": {"enum": list(SUBMISSION_MODES)},
        "backoffLimit": {"type": "integer", "minimum": 0},
        "submitterConfig": closed({"backoffLimit": NUMBER}),
        "submitterPodTemplate": FREE,
        "preRunningDeadlineSeconds": NUMBER,
        "activeDeadlineSeconds": NUMBER,
        "shutdownAfterJobFinishes": YES_OR_NO,
        "ttlSecondsAfterFinished": NUMBER,
        "deletionStrategy": closed(
            {
                "deletionRules": listed(
                    closed(
                        {
                            "policy": {"enum": list(POLICIES)},
                            "condition": closed(
                                {
                                    "jobStatus": {"enum": ["SUCCEEDED", "FAILED"]},
                                    "jobDeploymentStatus": {"enum": ["Failed"]},
                                    "ttlSeconds": NUMBER,
                                }
                            ),
                        }
                    )
                )
            }
        ),
        "runtimeEnvYAML": TEXT,
        "rayClusterSpec": CLUSTER,
    },
    ("entrypoint", "rayClusterSpec"),
)


def document(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return closed(
        {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": {"const": kind},
            "metadata": FREE,
            "spec": spec,
        },
        ("apiVersion", "kind", "metadata", "spec"),
    )


OWN_SCHEMAS = {
    "RayCluster": document("RayCluster", CLUSTER),
    "RayJob": document("RayJob", JOB),
    "RayCronJob": document(
        "RayCronJob",
        closed({"schedule": TEXT, "timeZone": TEXT, "jobTemplate": JOB}, ("schedule",)),
    ),
}
"""The fields of ray.io/v1 that the manifests use, for machines without KubeRay's schemas."""


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A Kubernetes structural schema as JSON schema in which, as in `--validate=strict`, a field
    that is not declared is an error."""
    out = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("format", "nullable", "default")
    }
    if "properties" in schema:
        out["properties"] = {key: strict(value) for key, value in schema["properties"].items()}
    if "items" in schema:
        out["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = strict(schema["additionalProperties"])
    elif (
        schema.get("type") == "object"
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        out["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
        out["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


def crd_schema(text: str) -> dict[str, Any]:
    """The strict schema of version v1 in a custom resource definition."""
    definition = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    # Declared as a bare object: the API server checks the object's own metadata by itself.
    schema["properties"]["metadata"] = FREE
    return schema


def documents(overlay: str) -> list[dict[str, Any]]:
    """Documents of a rendered overlay."""
    return list(yaml.safe_load_all(place(overlay).read_text(encoding="utf-8")))


def of_ray(overlay: str) -> dict[str, Any]:
    """The one document of ray.io."""
    (found,) = [each for each in documents(overlay) if each["apiVersion"] == "ray.io/v1"]
    return found


def job_spec(document: dict[str, Any]) -> dict[str, Any] | None:
    """The RayJob's specification in a RayJob or RayCronJob; None in a RayCluster."""
    if document["kind"] == "RayCluster":
        return None
    spec: dict[str, Any] = document["spec"]
    return spec["jobTemplate"] if document["kind"] == "RayCronJob" else spec


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster's specification, wherever it stands."""
    job = job_spec(document)
    spec: dict[str, Any] = document["spec"] if job is None else job["rayClusterSpec"]
    return spec


def pod_templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Templates of the head, the worker groups and the submitter."""
    cluster = cluster_spec(document)
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]
    if "submitterPodTemplate" in (job := job_spec(document) or {}):
        yield job["submitterPodTemplate"]


def check_pod(template: dict[str, Any]) -> None:
    """Raises kubernetes_validate.ValidationError where the template is no pod."""
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod", **template["metadata"]},
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


JOBS = tuple(overlay for overlay in OVERLAYS if job_spec(of_ray(overlay)) is not None)
