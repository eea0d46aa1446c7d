"""The templates in cluster/: Ray's and KubeRay's schemas, and rules of our own."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.autoscaler._private.util import prepare_config, validate_config

from gampen_ray import cli

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
CRDS = ROOT.parent / "shared" / "kuberay"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]
LAUNCHER = ["aws", "gcp"]
JOBS = ["train", "tune", "infer"]
MAX_IDLE_MINUTES = 10
CLOSED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
# Of KubeRay's CRDs (ray.io_rayclusters.yaml and ray.io_rayjobs.yaml of v1.6, Apache 2.0): what our manifests use of them.
GROUP = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
CLUSTER_SPEC = {
    "type": "object",
    "required": ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
    "additionalProperties": False,
    "properties": {
        "rayVersion": {"type": "string"},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "authOptions": {"properties": {"mode": {"enum": ["disabled", "token"]}}, "additionalProperties": False},
        "autoscalerOptions": {
            "properties": {
                "version": {"enum": ["v1", "v2"]},
                "idleTimeoutSeconds": {"type": "integer"},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
            },
            "additionalProperties": False,
        },
        "headGroupSpec": {
            "required": ["template"],
            "properties": {
                "serviceType": {"type": "string"},
                "rayStartParams": {"type": "object"},
                "template": {"type": "object"},
            },
            "additionalProperties": False,
        },
        "workerGroupSpecs": {
            "type": "array",
            "items": {
                "required": ["groupName", "minReplicas", "maxReplicas", "template"],
                "properties": {name: {} for name in GROUP}
                | {name: {"type": "integer"} for name in ("replicas", "minReplicas", "maxReplicas")},
                "additionalProperties": False,
            },
        },
    },
}
JOB_SPEC = {
    "type": "object",
    "required": ["entrypoint"],
    "additionalProperties": False,
    "properties": {
        "entrypoint": {"type": "string"},
        "clusterSelector": {"type": "object", "additionalProperties": {"type": "string"}},
        **{name: {"type": "integer"} for name in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")},
    },
}


def launcher(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())


def crd(kind: str) -> dict[str, Any]:
    """Return the schema of a custom resource, which refuses what it does not know."""
    versions = yaml.load((CRDS / f"ray.io_{kind}.yaml").read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    schema = next(one for one in versions["spec"]["versions"] if one["name"] == "v1")["schema"]["openAPIV3Schema"]

    def strict(node: Any) -> None:
        for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            strict(part)
        if isinstance(node, dict) and node.get("x-kubernetes-int-or-string"):
            node.pop("type", None)
            node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
        elif isinstance(node, dict) and node.get("type") == "object" and "properties" in node:
            node.setdefault("additionalProperties", False)

    strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def texts(node: Any) -> list[str]:
    """Return all strings in a document."""
    if isinstance(node, dict):
        return [text for key, value in node.items() for text in (*texts(key), *texts(value))]
    if isinstance(node, list):
        return [text for value in node for text in texts(value)]
    return [node] if isinstance(node, str) else []


def common_problems(document: dict[str, Any], images: list[str]) -> set[str]:
    """Return which rules that hold for every template are broken."""
    words = " ".join(texts(document))
    found = set()
    if not images or any(image.rpartition(":")[2] != VERSION for image in images):
        found.add("version")
    if "0.0.0.0" in words or "::/0" in words:
        found.add("closed ports")
    if re.search(
        r"AKIA[0-9A-Z]{16}|secret_access_key|BEGIN [A-Z ]*PRIVATE KEY|RAY_AUTH_TOKEN=|ghp_\w{36}", words, re.IGNORECASE
    ):
        found.add("no secret")
    return found


def launcher_problems(config: dict[str, Any]) -> set[str]:
    """Return which of our rules a template for `ray up` breaks."""
    docker = config["docker"]
    found = common_problems(config, [docker["image"]])
    kinds = config["available_node_types"]
    if any(kind["min_workers"] for kind in kinds.values() if kind["resources"].get("GPU")):
        found.add("no GPU node at rest")
    if not 0 < config.get("idle_timeout_minutes", 0) <= MAX_IDLE_MINUTES:
        found.add("idle timeout")
    if "--env RAY_AUTH_MODE=token" not in docker["run_options"]:
        found.add("token")
    head_start = " ".join(config["head_start_ray_commands"])
    own_network = {"aws": "SecurityGroupIds", "gcp": "networkInterfaces"}[config["provider"]["type"]]
    if "--dashboard-host=127.0.0.1" not in head_start or any(own_network not in kind["node_config"] for kind in kinds.values()):
        found.add("closed ports")
    role = {"aws": "IamInstanceProfile", "gcp": "serviceAccounts"}[config["provider"]["type"]]
    if any(role not in kind["node_config"] for kind in kinds.values()):
        found.add("role")
    return found


def cluster_problems(document: dict[str, Any]) -> set[str]:
    """Return which of our rules a RayCluster breaks."""
    spec = document["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    containers = [one for group in groups for one in group["template"]["spec"]["containers"]]
    found = common_problems(document, [one["image"] for one in containers])
    if spec["rayVersion"] != RAY:
        found.add("version")
    gpus = [
        group
        for group in spec["workerGroupSpecs"]
        if any("nvidia.com/gpu" in one["resources"]["limits"] for one in group["template"]["spec"]["containers"])
    ]
    if not gpus or any(group["minReplicas"] or group["replicas"] for group in gpus):
        found.add("no GPU node at rest")
    options = spec.get("autoscalerOptions", {})
    if not 0 < options.get("idleTimeoutSeconds", 0) <= 60 * MAX_IDLE_MINUTES:
        found.add("idle timeout")
    if not spec.get("enableInTreeAutoscaling") or options.get("version") != "v2":
        found.add("autoscaler")
    if spec.get("authOptions", {}).get("mode") != "token":
        found.add("token")
    if spec["headGroupSpec"].get("serviceType", "ClusterIP") != "ClusterIP":
        found.add("closed ports")
    pods = [group["template"]["spec"] for group in groups]
    if any("serviceAccountName" not in pod for pod in pods):
        found.add("role")
    if any(pod.get("automountServiceAccountToken", True) for pod in pods[1:]):
        found.add("no token of Kubernetes on workers")
    own = [pod.get("securityContext", {}) for pod in pods]
    if any((one.get("runAsNonRoot"), one.get("seccompProfile")) != (True, {"type": "RuntimeDefault"}) for one in own):
        found.add("closed pods")
    if any(one.get("securityContext", {}) != CLOSED for one in containers):
        found.add("closed pods")
    return found


def broken(document: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    document = copy.deepcopy(document)
    change(document)
    return document


@pytest.mark.parametrize("name", LAUNCHER)
def test_launcher_templates_follow_rays_schema_and_our_rules(name: str) -> None:
    validate_config(prepare_config(launcher(name)))
    assert launcher_problems(launcher(name)) == set()


@pytest.mark.parametrize("name", LAUNCHER)
def test_rays_schema_is_asked(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(launcher(name) | {"idle_timeout_minute": 5}))


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("version", lambda c: c["docker"].update(image="x/gampen-ray:latest")),
        ("version", lambda c: c["docker"].update(image="x/gampen-ray:0.0.9")),
        ("no GPU node at rest", lambda c: c["available_node_types"]["gpu"].update(min_workers=1)),
        ("idle timeout", lambda c: c.pop("idle_timeout_minutes")),
        ("idle timeout", lambda c: c.update(idle_timeout_minutes=60)),
        ("token", lambda c: c["docker"]["run_options"].remove("--env RAY_AUTH_MODE=token")),
        ("closed ports", lambda c: c["head_start_ray_commands"].append("ray start --head --dashboard-host=0.0.0.0")),
        ("closed ports", lambda c: c.update(head_start_ray_commands=["ray start --head"])),
        (
            "role",
            lambda c: [
                c["available_node_types"]["cpu"]["node_config"].pop(n, 0) for n in ("IamInstanceProfile", "serviceAccounts")
            ],
        ),
        ("no secret", lambda c: c.update(initialization_commands=["export AWS_SECRET_ACCESS_KEY=abc"])),
        ("no secret", lambda c: c["docker"]["run_options"].append("--env RAY_AUTH_TOKEN=abc")),
    ],
)
@pytest.mark.parametrize("name", LAUNCHER)
def test_a_launcher_template_that_breaks_a_rule_is_found(name: str, rule: str, change: Callable[[dict[str, Any]], Any]) -> None:
    assert launcher_problems(broken(launcher(name), change)) == {rule}


def test_manifests_follow_our_rules_and_what_we_use_of_kuberays_schema() -> None:
    jsonschema.validate(manifest("raycluster")["spec"], CLUSTER_SPEC)
    assert cluster_problems(manifest("raycluster")) == set()
    for name in JOBS:
        jsonschema.validate(manifest(name)["spec"], JOB_SPEC)
        assert common_problems(manifest(name), [f"gampen-ray:{VERSION}"]) == set()
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken(manifest("raycluster"), lambda c: c["spec"].update(rayversion="2"))["spec"], CLUSTER_SPEC)


@pytest.mark.skipif(not CRDS.exists(), reason="needs KubeRay's CRDs in ../shared/kuberay")
def test_manifests_follow_kuberays_schema() -> None:
    # Not `jsonschema.validate`, which holds a schema of 10,000 lines against the schema of schemas every time.
    clusters, jobs = (jsonschema.Draft202012Validator(crd(kind)) for kind in ("rayclusters", "rayjobs"))
    clusters.validate(manifest("raycluster"))
    for name in JOBS:
        jobs.validate(manifest(name))
    assert not clusters.is_valid(
        broken(manifest("raycluster"), lambda c: c["spec"]["workerGroupSpecs"][0].update(maxReplica=3))
    )
    assert not jobs.is_valid(broken(manifest("train"), lambda c: c["spec"].update(backofLimit=1)))


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("version", lambda s: s.update(rayVersion="2.59.0")),
        ("version", lambda s: s["headGroupSpec"]["template"]["spec"]["containers"][0].update(image="gampen-ray:latest")),
        ("no GPU node at rest", lambda s: s["workerGroupSpecs"][1].update(minReplicas=1)),
        ("idle timeout", lambda s: s["autoscalerOptions"].pop("idleTimeoutSeconds")),
        ("autoscaler", lambda s: s["autoscalerOptions"].update(version="v1")),
        ("token", lambda s: s.pop("authOptions")),
        ("closed ports", lambda s: s["headGroupSpec"].update(serviceType="LoadBalancer")),
        ("closed ports", lambda s: s["headGroupSpec"]["rayStartParams"].update({"dashboard-host": "0.0.0.0"})),
        ("role", lambda s: s["workerGroupSpecs"][0]["template"]["spec"].pop("serviceAccountName")),
        ("no secret", lambda s: s["headGroupSpec"]["rayStartParams"].update(x="AKIA0123456789ABCDEF")),
        (
            "no token of Kubernetes on workers",
            lambda s: s["workerGroupSpecs"][0]["template"]["spec"].pop("automountServiceAccountToken"),
        ),
        ("closed pods", lambda s: s["workerGroupSpecs"][1]["template"]["spec"].pop("securityContext")),
        ("closed pods", lambda s: s["headGroupSpec"]["template"]["spec"]["containers"][0].pop("securityContext")),
    ],
)
def test_a_cluster_manifest_that_breaks_a_rule_is_found(rule: str, change: Callable[[dict[str, Any]], Any]) -> None:
    assert cluster_problems(broken(manifest("raycluster"), lambda c: change(c["spec"]))) == {rule}


def test_only_the_cluster_and_its_operator_reach_the_pods() -> None:
    spec = manifest("networkpolicy")["spec"]
    pods = {"matchLabels": {"ray.io/cluster": manifest("raycluster")["metadata"]["name"]}}
    assert (spec["podSelector"], spec["policyTypes"]) == (pods, ["Ingress"])
    own, operator = spec["ingress"]
    assert own == {"from": [{"podSelector": pods}]}
    assert [list(one) for one in operator["from"]] == [["namespaceSelector"]]
    assert [port["port"] for port in operator["ports"]] == [8265]


@pytest.mark.parametrize("name", JOBS)
def test_jobs_run_on_the_cluster_beside_them_and_the_program_takes_their_arguments(name: str) -> None:
    spec = manifest(name)["spec"]
    assert spec["clusterSelector"]["ray.io/cluster"] == manifest("raycluster")["metadata"]["name"]
    program, *arguments = shlex.split(spec["entrypoint"])
    assert (program, arguments[0]) == ("gampen-ray", name)
    cli.parse(arguments)


def test_every_template_says_in_three_comments_what_to_change() -> None:
    files = [*CLUSTER.glob("*.yaml"), *CLUSTER.glob("kuberay/*.yaml"), CLUSTER / "Dockerfile", CLUSTER / "slurm.sh"]
    assert len(files) == 9
    for path in files:
        assert len(re.findall(r"^# Change: [123]\. ", path.read_text(), re.MULTILINE)) == 3, path


def test_image_is_pinned_and_installs_packages_by_their_hashes() -> None:
    text = (CLUSTER / "Dockerfile").read_text()
    assert re.search(r"^FROM python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    assert f"gampen-ray:{VERSION} " in text
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert all("--require-hashes -r requirements.txt" in line or "--no-deps" in line for line in installs)


def test_hashes_are_of_the_versions_that_constraints_say() -> None:
    """Also of all that this package needs: `make lock` writes the file."""
    text = (CLUSTER / "requirements.txt").read_text()
    assert "://" not in text
    locked = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", text, re.MULTILINE)}
    assert len(re.findall(r"^[\w.-]+==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)) == len(locked)
    constraints = (line.partition("==") for line in (ROOT / "constraints.txt").read_text().split())
    wanted = {canonicalize_name(name): version for name, _, version in constraints}
    assert {name: locked[name] for name in locked.keys() & wanted} == {name: wanted[name] for name in locked.keys() & wanted}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [one for name, some in project["optional-dependencies"].items() if name not in ("dev", "docs") for one in some]
    needed = [Requirement(one) for one in (*project["dependencies"], *optional)]
    assert [one.name for one in needed if locked.get(canonicalize_name(one.name)) not in one.specifier] == []


def local(action: str, folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, CLUSTER / "local.py", action, "--folder", folder]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("how", ["open to others", "of another user", "a link", "a dangling link", "a file"])
def test_a_local_cluster_is_neither_read_from_nor_started_in_what_others_could_have_made(how: str, tmp_path: Path) -> None:
    planted = json.dumps({"gcs": "$(touch pwned)", "dashboard": "http://127.0.0.1:1", "grows": False, "nodes": {}})
    folder = there = tmp_path / "cluster"
    if "link" in how:
        there = tmp_path / "elsewhere"
        folder.symlink_to(there)
    if how == "a file":
        folder.touch(mode=0o700)
    elif how != "a dangling link":
        there.mkdir(mode=0o700)
        (there / "cluster.json").write_text(planted)
    if how == "open to others":
        folder.chmod(0o755)
    elif how == "of another user":
        if os.getuid():
            pytest.skip("only root can make a folder of another user")
        os.chown(folder, 65534, 65534)
    for action in ("env", "up", "down"):
        done = local(action, folder)
        assert (done.returncode, done.stdout) == (2, "")
        expected = f"local.py: error: {folder} must be a folder of yours, closed to others (mode 0700); give another --folder\n"
        assert done.stderr == expected
    if how not in ("a file", "a dangling link"):
        assert [path.name for path in there.iterdir()] == ["cluster.json"]


def test_what_a_local_cluster_prints_is_evaluated_as_text(tmp_path: Path) -> None:
    folder = tmp_path / "$(touch pwned); x 'y'"
    folder.mkdir(mode=0o700)
    gcs = "1; touch pwned `touch pwned`"
    (folder / "cluster.json").write_text(json.dumps({"gcs": gcs, "dashboard": "", "grows": False, "nodes": {}}))
    told = local("env", folder)
    script = r'eval "$1"; printf "%s\n" "$RAY_ADDRESS" "$RAY_AUTH_TOKEN_PATH"'
    shown = subprocess.run(["bash", "-c", script, "-", told.stdout], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [gcs, str(folder / "token")]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_slurm_script_is_bash_and_lets_nobody_else_in() -> None:
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert "RAY_AUTH_MODE=token" in text
    assert "umask 077" in text
