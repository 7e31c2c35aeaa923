"""The RayJob manifest: strict against KubeRay's own schema where that is at hand, and against what
we use of it everywhere."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from common.actors.resources import claims, total_cpus
from common.config.loader import load_run
from deploy.cli import split
from deploy.cluster import ENVIRONMENT
from deploy.submit import JOB_ENVIRONMENT, entrypoint

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = ROOT / "deploy" / "kuberay" / "rayjob.yaml"
KUBERNETES = "1.33"
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
"""KubeRay 1.7 declares the field as any string and refuses others only when it runs."""

FREE = {"type": "object"}
WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
AUTHENTICATION = {"mode": {"enum": ["disabled", "token"]}}
GROUP = {"rayStartParams": WORDS, "template": FREE}
OWN_SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": FREE,
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["entrypoint", "rayClusterSpec"],
            "properties": {
                "entrypoint": {"type": "string"},
                "submissionMode": {"enum": list(SUBMISSION_MODES)},
                "backoffLimit": {"type": "integer", "minimum": 0},
                "preRunningDeadlineSeconds": {"type": "integer"},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": {"type": "integer"},
                "runtimeEnvYAML": {"type": "string"},
                "rayClusterSpec": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["headGroupSpec"],
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {"mode": {"enum": ["disabled", "token"]}},
                        },
                        "headGroupSpec": {
                            "type": "object",
                            "additionalProperties": False,
                            "required": ["template"],
                            "properties": GROUP,
                        },
                        "workerGroupSpecs": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["groupName", "minReplicas", "maxReplicas", "template"],
                                "properties": GROUP
                                | {"groupName": {"type": "string"}}
                                | {
                                    name: {"type": "integer"}
                                    for name in ("replicas", "minReplicas", "maxReplicas")
                                },
                            },
                        },
                    },
                },
            },
        },
    },
}
"""The fields of ray.io/v1 that the manifest uses, for machines without KubeRay's schema."""


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


@pytest.fixture(scope="module")
def crd(shared: Path) -> dict[str, Any]:
    path = shared / "kuberay" / "v1.7.0_ray.io_rayjobs.yaml"
    if not path.exists():
        pytest.skip("KubeRay's schemas are not on this machine")
    definition = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    # Declared as a bare object: the API server checks the object's own metadata by itself.
    schema["properties"]["metadata"] = FREE
    return schema


@pytest.fixture
def documents() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(MANIFEST.read_text())}


def pod_templates(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]


def check_pod(template: dict[str, Any]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "pod", **template["metadata"]},
        "spec": template["spec"],
    }
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def test_manifest_fits_kuberays_schema(crd: dict[str, Any], documents: dict[str, Any]) -> None:
    assert list(jsonschema.Draft7Validator(crd).iter_errors(documents["RayJob"])) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entrypiont", "python"),
        ("spec.backoffLimit", "three"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.minReplica", 1),
        ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", "two"),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.port", []),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
    ],
)
def test_kuberays_schema_refuses_a_wrong_field(
    crd: dict[str, Any], documents: dict[str, Any], path: str, value: object
) -> None:
    job = documents["RayJob"]
    set_at(job, path, value)
    assert list(jsonschema.Draft7Validator(crd).iter_errors(job)) != []


def test_own_schema_is_no_wider_than_kuberays(crd: dict[str, Any]) -> None:
    def declared(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> Iterator[str]:
        for key, value in ours.get("properties", {}).items():
            if key not in theirs["properties"]:
                yield f"{path}.{key}"
            else:
                yield from declared(value, theirs["properties"][key], f"{path}.{key}")
        if "items" in ours:
            yield from declared(ours["items"], theirs["items"], f"{path}[]")

    assert list(declared(OWN_SCHEMA, crd, "")) == []


def test_manifest_fits_own_schema_and_pods_fit_kubernetes(documents: dict[str, Any]) -> None:
    jsonschema.validate(documents["RayJob"], OWN_SCHEMA)
    kubernetes_validate.validate(documents["PersistentVolumeClaim"], KUBERNETES, strict=True)
    for template in pod_templates(documents["RayJob"]):
        check_pod(template)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.submissionMode", "JobMode"),
        ("spec.suspended", True),
        ("spec.rayClusterSpec.auth", {}),
    ],
)
def test_own_schema_refuses_a_wrong_field(
    documents: dict[str, Any], path: str, value: object
) -> None:
    job = documents["RayJob"]
    set_at(job, path, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, OWN_SCHEMA)


def test_an_unknown_field_of_a_pod_fails(documents: dict[str, Any]) -> None:
    template = copy.deepcopy(next(pod_templates(documents["RayJob"])))
    template["spec"]["containers"][0]["image_pull_policy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="image_pull_policy"):
        check_pod(template)


def test_entrypoint_is_the_command_that_submit_sends_and_its_config_loads(
    documents: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(documents["RayJob"]["spec"]["entrypoint"])
    configs, overrides = split(words[4:])
    assert shlex.join(words) == entrypoint(configs, overrides)
    monkeypatch.chdir(ROOT)
    run = load_run(configs, overrides)
    mounts = {
        mount["mountPath"]
        for t in pod_templates(documents["RayJob"])
        for c in t["spec"]["containers"]
        for mount in c["volumeMounts"]
    }
    assert run.runs in mounts
    head = next(pod_templates(documents["RayJob"]))
    assert head["metadata"]["annotations"]["prometheus.io/port"] == str(run.metrics.port)
    assert run.metrics.port in [
        port["containerPort"] for port in head["spec"]["containers"][0]["ports"]
    ]


def test_workers_have_room_for_every_claim_of_the_run(
    documents: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    spec = documents["RayJob"]["spec"]
    run = load_run(*split(shlex.split(spec["entrypoint"])[4:]))
    groups = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert sum(
        group["minReplicas"] * float(group["rayStartParams"]["num-cpus"]) for group in groups
    ) >= total_cpus(run)
    assert max(float(group["rayStartParams"]["num-cpus"]) for group in groups) >= max(
        claim.cpus for claim in claims(run)
    )


def test_a_restarted_job_resumes_and_the_cluster_goes_afterwards(documents: dict[str, Any]) -> None:
    spec = documents["RayJob"]["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_environment_of_the_manifest_is_that_of_a_submitted_job(documents: dict[str, Any]) -> None:
    assert yaml.safe_load(documents["RayJob"]["spec"]["runtimeEnvYAML"]) == {
        "env_vars": JOB_ENVIRONMENT
    }
    assert ENVIRONMENT.items() <= JOB_ENVIRONMENT.items()


def test_ray_version_is_the_pinned_one(documents: dict[str, Any]) -> None:
    (pinned,) = [
        line.removeprefix("ray==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    ]
    assert documents["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"] == pinned


def test_image_runs_as_the_user_that_the_pods_demand(documents: dict[str, Any]) -> None:
    lines = (ROOT / "deploy" / "docker" / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    for template in pod_templates(documents["RayJob"]):
        security = template["spec"]["securityContext"]
        assert users[-1] == f"{security['runAsUser']}:{security['runAsGroup']}"
        assert security["runAsNonRoot"] is True


def test_image_has_every_package_and_installs_at_the_tested_versions() -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for package in ("common", "rollout", "reward_service", "learner", "deploy", "configs"):
        assert f"COPY {package} {package}" in text
        assert package in kept
    assert "--constraint constraints.txt" in text


def set_at(tree: Any, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for key in parents:
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    tree[last] = value
