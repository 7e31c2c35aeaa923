"""The manifests for KubeRay: what kustomize makes of them, strict against KubeRay's own schemas
where those are at hand, and against the fields that are used everywhere; and what they say to
engram."""

from __future__ import annotations

import copy
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from common.actors.resources import claims, growth_cpus
from common.config.loader import load_run
from common.config.run import Run
from common.failures import EXIT_BAD_INPUT, EXIT_DONE
from deploy.cli import run_command, split
from deploy.cluster import ENVIRONMENT, lacking
from deploy.job_server import STOP_SECONDS
from deploy.kuberay.render import FOLDER, OVERLAYS, place, rendered
from deploy.submit import JOB_ENVIRONMENT, entrypoint
from tests.manifests import (
    JOBS,
    KUBERNETES,
    OPERATOR_KINDS,
    OWN_SCHEMAS,
    check_pod,
    cluster_spec,
    crd_schema,
    documents,
    job_spec,
    of_ray,
    pod_templates,
)

ROOT = Path(__file__).resolve().parent.parent
MINE = FOLDER / "overlays" / "own-data" / "mine"
TRAINING = [overlay for overlay in JOBS if overlay != "nightly"]
NEEDS_KUBECTL = pytest.mark.skipif(
    shutil.which("kubectl") is None,
    reason="no kubectl here: the rendered manifests are tested, and not that they are current",
)


@pytest.fixture(scope="module")
def crds(shared: Path) -> dict[str, Any]:
    folder = shared / "kuberay"
    if not folder.is_dir():
        pytest.skip("KubeRay's schemas are not on this machine")
    return {
        kind: crd_schema((folder / f"ray.io_{kind.lower()}s.yaml").read_text())
        for kind in OWN_SCHEMAS
    }


def errors(schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    found = jsonschema.Draft7Validator(schema).iter_errors(document)
    return [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in found]


@NEEDS_KUBECTL
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rendered_manifest_is_what_kustomize_makes(overlay: str) -> None:
    made = list(yaml.safe_load_all(rendered(overlay)))
    assert made == documents(overlay), "write it anew: python -m deploy.kuberay.render"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_fits_the_schemas_of_kubernetes(overlay: str) -> None:
    for document in documents(overlay):
        if document["apiVersion"] == "ray.io/v1":
            for template in pod_templates(document):
                check_pod(template)
        elif document["kind"] in OPERATOR_KINDS:
            assert document["apiVersion"] == "monitoring.coreos.com/v1"
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert errors(OWN_SCHEMAS[of_ray(overlay)["kind"]], of_ray(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_fits_kuberays_schemas(crds: dict[str, Any], overlay: str) -> None:
    assert errors(crds[of_ray(overlay)["kind"]], of_ray(overlay)) == []


PLANTED = [
    ("cpu/job", "spec.entrypiont", "python"),
    ("cpu/job", "spec.suspended", True),
    ("cpu/job", "spec.backoffLimit", "three"),
    ("cpu/job", "spec.rayClusterSpec.auth", {}),
    ("cpu/job", "spec.rayClusterSpec.workerGroupSpecs.0.minReplica", 1),
    ("cpu/job", "spec.rayClusterSpec.workerGroupSpecs.0.replicas", "two"),
    ("cpu/job", "spec.rayClusterSpec.authOptions.mode", "tokens"),
    ("cpu/job", "spec.deletionStrategy.deletionRules.0.policy", "DeleteAll"),
    ("gpu/cluster", "spec.autoscalerOptions.upscalingMode", "Fast"),
    ("options", "spec.networkPolicy.mode", "AllowAll"),
    ("options", "spec.gcsFaultToleranceOptions.backend", "sqlite"),
    ("options", "spec.historyServerOptions.collector", {}),
    ("nightly", "spec.scheduled", "0 2 * * *"),
    ("nightly", "spec.jobTemplate.backoffLimits", 1),
]


@pytest.mark.parametrize(("overlay", "path", "value"), PLANTED)
def test_a_planted_fault_fails_by_kuberays_schema(
    crds: dict[str, Any], overlay: str, path: str, value: object
) -> None:
    document = copy.deepcopy(of_ray(overlay))
    set_at(document, path, value)
    assert errors(crds[document["kind"]], document) != []


@pytest.mark.parametrize(
    ("overlay", "path", "value"), [*PLANTED, ("cpu/job", "spec.submissionMode", "JobMode")]
)
def test_a_planted_fault_fails_without_kuberays_schema(
    overlay: str, path: str, value: object
) -> None:
    document = copy.deepcopy(of_ray(overlay))
    set_at(document, path, value)
    assert errors(OWN_SCHEMAS[document["kind"]], document) != []


def test_own_schemas_are_no_wider_than_kuberays(crds: dict[str, Any]) -> None:
    def declared(ours: dict[str, Any], theirs: dict[str, Any], path: str) -> Iterator[str]:
        for key, value in ours.get("properties", {}).items():
            if key not in theirs["properties"]:
                yield f"{path}.{key}"
            else:
                yield from declared(value, theirs["properties"][key], f"{path}.{key}")
        if "items" in ours and "items" in theirs:
            yield from declared(ours["items"], theirs["items"], f"{path}[]")

    for kind, schema in OWN_SCHEMAS.items():
        assert list(declared(schema, crds[kind], kind)) == []


def test_an_unknown_field_of_a_pod_fails() -> None:
    template = copy.deepcopy(next(pod_templates(of_ray("cpu/job"))))
    template["spec"]["containers"][0]["image_pull_policy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="image_pull_policy"):
        check_pod(template)


@NEEDS_KUBECTL
def test_a_typo_in_a_patch_does_not_build(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kuberay")
    groups = tmp_path / "kuberay" / "overlays" / "gpu" / "groups" / "groups.yaml"
    groups.write_text(groups.read_text().replace("path: /spec/headGroupSpec/", "path: /spec/head/"))
    done = subprocess.run(
        ["kubectl", "kustomize", str(groups.parents[1] / "cluster")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "/spec/head/" in done.stderr


@pytest.mark.parametrize("overlay", JOBS)
def test_a_job_keeps_the_rules_that_kuberay_checks_itself(overlay: str) -> None:
    """By its schemas' CEL rules, and by the operator's own checks of a RayJob."""
    job = job_spec(of_ray(overlay))
    assert job is not None
    rules = job.get("deletionStrategy", {}).get("deletionRules", [])
    assert not (rules and job["shutdownAfterJobFinishes"]), "mutually exclusive"
    assert job["shutdownAfterJobFinishes"] or "ttlSecondsAfterFinished" not in job
    for rule in rules:
        assert len(rule["condition"].keys() & {"jobStatus", "jobDeploymentStatus"}) == 1
    pairs = [(rule["policy"], *sorted(rule["condition"].items())[:1]) for rule in rules]
    assert len(set(pairs)) == len(pairs), "one rule of a kind for a state"
    assert rules or job["shutdownAfterJobFinishes"], "the cluster must go some day"


@pytest.mark.parametrize("kind", ["kind", "cpu", "gpu"])
def test_the_cluster_of_a_job_is_the_standing_one(kind: str) -> None:
    assert cluster_spec(of_ray(f"{kind}/job")) == cluster_spec(of_ray(f"{kind}/cluster"))


def words(overlay: str) -> list[str]:
    job = job_spec(of_ray(overlay))
    assert job is not None
    found = shlex.split(job["entrypoint"])
    assert found[:3] == ["python", "-m", "deploy"]
    return found[3:]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """The folder that is /mine in a pod, with its own path in its configuration."""
    shutil.copytree(MINE, tmp_path / "mine")
    config = tmp_path / "mine" / "mine.yaml"
    config.write_text(config.read_text().replace("/mine/", f"{tmp_path}/mine/"))
    return tmp_path / "mine"


def run_of(overlay: str, mine: Path, *more: str) -> Run:
    command = [word.replace("/mine/", f"{mine}/") for word in words(overlay)]
    configs, overrides = split(command[1:])
    return load_run([ROOT / config for config in configs], [*overrides, *more])


@pytest.mark.parametrize("overlay", TRAINING)
def test_the_entrypoint_is_what_submit_sends_and_the_pods_have_what_it_names(
    overlay: str, mine: Path
) -> None:
    command = words(overlay)
    configs, overrides = split(command[1:])
    assert shlex.join(["python", "-m", "deploy", *command]) == entrypoint(configs, overrides)
    run, head = run_of(overlay, mine), next(pod_templates(of_ray(overlay)))
    (container,) = head["spec"]["containers"]
    assert run.runs in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert head["metadata"]["annotations"]["prometheus.io/port"] == str(run.metrics.port)
    assert run.metrics.port in [port["containerPort"] for port in container["ports"]]


@pytest.mark.parametrize("overlay", TRAINING)
def test_the_entrypoint_plans_with_no_gpu_and_little_data(
    overlay: str, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command = [word.replace("/mine/", f"{mine}/") for word in words(overlay)]
    assert command[0] == "train"
    small = ["learner.gpus_per_rank=0", "rollout.gpus_per_worker=0", "tokenizer.vocab_size=300"]
    if overlay != "own-data":
        small += ["data.train=60", "data.eval=20"]
    assert run_command(["plan", *command[1:], *small]) == EXIT_DONE, capsys.readouterr().err


def test_the_nightly_command_is_read_and_names_what_is_not_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert words("nightly")[:2] == ["eval", "/runs/demo"]
    assert run_command(["eval", "/no/such/run", *words("nightly")[2:]]) == EXIT_BAD_INPUT
    assert "/no/such/run" in capsys.readouterr().err


@pytest.mark.parametrize("overlay", TRAINING)
def test_the_smallest_cluster_has_room_for_every_claim(overlay: str, mine: Path) -> None:
    """Counted as a run counts it, on nodes with the labels that their groups have."""
    run, groups = run_of(overlay, mine), cluster_spec(of_ray(overlay))["workerGroupSpecs"]

    def nodes(size: str) -> list[dict[str, Any]]:
        return [
            {
                "Alive": True,
                "Labels": group.get("labels", {}),
                "Resources": {
                    "CPU": float(group["rayStartParams"]["num-cpus"]),
                    "GPU": float(group["rayStartParams"].get("num-gpus", 0)),
                },
            }
            for group in groups
            for _ in range(group[size])
        ]

    assert lacking(run, nodes("minReplicas")) == []
    largest = max(node["Resources"]["CPU"] for node in nodes("minReplicas"))
    assert largest >= max(claim.cpus for claim in claims(run))
    spare = sum(node["Resources"]["CPU"] for node in nodes("maxReplicas"))
    assert spare >= sum(claim.count * claim.cpus for claim in claims(run)) + growth_cpus(run)


def test_roles_have_groups_of_their_own_where_there_are_gpus(mine: Path) -> None:
    run, cluster = run_of("gpu/job", mine), cluster_spec(of_ray("gpu/job"))
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert groups.keys() == {"learner", "rollout", "reward"}
    for labels, name in (
        (run.learner.node_labels, "learner"),
        (run.rollout.node_labels, "rollout"),
        (run.rewards.node_labels, "reward"),
    ):
        assert labels == groups[name]["labels"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert groups["reward"]["maxReplicas"] > groups["reward"]["minReplicas"]
    for name in ("learner", "rollout"):
        (container,) = groups[name]["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert groups[name]["rayStartParams"]["num-gpus"] == "1"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_safe_probed_and_have_time_to_stop(overlay: str) -> None:
    cluster = cluster_spec(of_ray(overlay))
    for template in pod_templates(of_ray(overlay)):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["priorityClassName"] == "engram"
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] > STOP_SECONDS
        (container,) = spec["containers"]
        assert container.keys() >= {"startupProbe", "readinessProbe", "livenessProbe"}
        (memory,) = [v["emptyDir"] for v in spec["volumes"] if v["name"] == "shared-memory"]
        assert memory["medium"] == "Memory"
        store = int(group["rayStartParams"]["object-store-memory"])
        assert store < quantity(memory["sizeLimit"])
        assert quantity(memory["sizeLimit"]) < quantity(container["resources"]["limits"]["memory"])


def test_names_that_documents_use_are_those_of_documents() -> None:
    for overlay in OVERLAYS:
        found = documents(overlay)
        names = {(each["kind"], each["metadata"]["name"]) for each in found}
        for template in pod_templates(of_ray(overlay)):
            spec = template["spec"]
            assert ("PriorityClass", spec["priorityClassName"]) in names
            assert ("ServiceAccount", spec.get("serviceAccountName", "engram")) in names
            for volume in spec.get("volumes", []):
                if claim := volume.get("persistentVolumeClaim"):
                    assert ("PersistentVolumeClaim", claim["claimName"]) in names
                if config := volume.get("configMap"):
                    assert ("ConfigMap", config["name"]) in names
        pods = [each["metadata"]["labels"].items() for each in pod_templates(of_ray(overlay))]
        for budget in (each for each in found if each["kind"] == "PodDisruptionBudget"):
            wanted = budget["spec"]["selector"]["matchLabels"].items()
            assert any(wanted <= labels for labels in pods), budget["metadata"]["name"]


def test_what_is_filled_in_by_hand_reaches_every_pod() -> None:
    for overlay in OVERLAYS:
        for template in pod_templates(of_ray(overlay)):
            for container in template["spec"]["containers"]:
                assert container["image"] in ("engram:0.1.0", "engram-gpu:0.1.0")
        (account,) = [each for each in documents(overlay) if each["kind"] == "ServiceAccount"]
        assert account["imagePullSecrets"] == [{"name": "engram-registry"}]


@pytest.mark.parametrize("overlay", JOBS)
def test_environment_of_a_job_is_that_of_a_submitted_one(overlay: str) -> None:
    job = job_spec(of_ray(overlay))
    assert job is not None
    assert yaml.safe_load(job["runtimeEnvYAML"]) == {"env_vars": JOB_ENVIRONMENT}
    assert ENVIRONMENT.items() <= JOB_ENVIRONMENT.items()
    assert job["submissionMode"] == "K8sJobMode"
    assert job["backoffLimit"] >= 1
    assert job["submitterConfig"] == {"backoffLimit": 0}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ray_version_is_the_pinned_one_and_the_head_starts_no_actor(overlay: str) -> None:
    (pinned,) = [
        line.removeprefix("ray==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    ]
    cluster = cluster_spec(of_ray(overlay))
    assert cluster["rayVersion"] == pinned
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_example_of_own_data_has_all_its_files() -> None:
    (config,) = [each for each in documents("own-data") if each["kind"] == "ConfigMap"]
    assert config["data"].keys() == {path.name for path in MINE.iterdir()}
    assert place("own-data").stat().st_size < 2**20


def quantity(text: str) -> int:
    """Bytes of "5Gi"."""
    return int(text.removesuffix("Gi")) * 2**30


def set_at(tree: Any, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for key in parents:
        tree = tree[int(key)] if isinstance(tree, list) else tree[key]
    tree[last] = value
