"""The files in `deploy/` fit the worker: their options, paths and ports exist, and their times add up.

Whether nginx passes everything through is `test_proxy.py`'s to show.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError

from tools.docs.examples import idle_worker, silent_narrator
from worker_orcd.api.app import create_app
from worker_orcd.api.keys import ApiKeys, KeyFileError
from worker_orcd.api.middleware import MAX_BODY_BYTES
from worker_orcd.api.server import FLUSH_SEC
from worker_orcd.api.sse import KEEP_ALIVE_SEC
from worker_orcd.settings import Settings, options
from worker_orcd.testing.harness import RunningWorker, free_port
from worker_orcd.worker.single import SingleWorker
from worker_orcd.worker.worker import SHUTDOWN_STOP_SEC

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())

AFTER_THE_DRAIN_SEC = 2 * SHUTDOWN_STOP_SEC + FLUSH_SEC + 2
"""Time to stop the remaining jobs and the engine, to flush the streams, and for a busy machine."""


def text_of(name: str) -> str:
    """A file of `deploy/`."""
    return (DEPLOY / name).read_text(encoding="utf-8")


def given(words: list[str]) -> dict[str, str]:
    """`--drain-sec 60` as the worker's settings take it."""
    flags = {option.flag: option.name for option in options()}
    assert len(words) % 2 == 0, words
    return {flags[flag]: value for flag, value in zip(words[::2], words[1::2], strict=True)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_option_that_is_named_exists(path: Path) -> None:
    """Variables anywhere in a file, comments included."""
    known = {option.variable for option in options()}
    assert set(re.findall(r"WORKER_ORCD_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8"))) <= known


# systemd


def unit() -> RawConfigParser:
    """The unit; if a setting occurs more than once, the last one counts."""
    parser = RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(text_of("worker-orcd.service"))
    return parser


def variables(name: str) -> dict[str, str]:
    """The variables of an environment file, also those in comments."""
    return dict(re.findall(r"^#?([A-Z_]+)=(.*)$", text_of(name), re.MULTILINE))


@pytest.fixture
def installed_unit(tmp_path: Path) -> Path:
    """The unit, with the path of an existing worker."""
    path = tmp_path / "worker-orcd.service"
    program = str(Path(sys.executable).parent / "worker-orcd")
    path.write_text(text_of("worker-orcd.service").replace("/opt/worker-orcd/bin/worker-orcd", program))
    return path


@pytest.mark.needs("systemd-analyze")
def test_systemd_has_nothing_to_say_against_the_unit(installed_unit: Path) -> None:
    """No setting is unknown or misspelt."""
    command = ["systemd-analyze", "verify", "--man=no", str(installed_unit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.needs("systemd-analyze")
def test_systemd_finds_little_that_the_unit_leaves_open(installed_unit: Path) -> None:
    """An exposure of at most 2.0 of 10, from the network and from setting the CPU affinity of threads."""
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=20",
        "--no-pager",
        str(installed_unit),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_waits_for_the_drain_and_leaves_the_engine_to_the_front() -> None:
    """The flag overrides the environment file, so the sum holds whatever the file sets."""
    service = unit()["Service"]
    settings = Settings(**given(service["ExecStart"].split()[1:]))  # type: ignore[arg-type]
    assert float(service["TimeoutStopSec"]) >= settings.drain_sec + AFTER_THE_DRAIN_SEC
    assert (service["KillMode"], service["OOMPolicy"]) == ("mixed", "continue")
    assert "KillSignal" not in service
    assert service["Restart"] == "on-failure"
    assert (service["DynamicUser"], service["NoNewPrivileges"]) == ("yes", "yes")
    assert "WORKER_ORCD_DRAIN_SEC" not in variables("worker-orcd.env")


def test_the_unit_suggests_keys_for_operators_beside_those_of_tenants() -> None:
    """Without operators' keys nobody may read /metrics, because the unit uses keys."""
    tenants = unit()["Service"]["Environment"].removeprefix("WORKER_ORCD_API_KEY_FILE=")
    operators = variables("worker-orcd.env")["WORKER_ORCD_OPERATOR_KEY_FILE"]
    assert Path(operators).parent == Path(tenants).parent
    assert operators != tenants


def test_the_environment_file_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values that it sets, and those that it suggests in comments."""
    suggested = variables("worker-orcd.env")
    for name, value in suggested.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert str(settings.model) == suggested["WORKER_ORCD_MODEL"]
    assert settings.threads == int(suggested["WORKER_ORCD_THREADS"])


@pytest.mark.parametrize(("keys", "hung_up"), [("/path/to/keys", True), ("", False)])
def test_a_reload_hangs_up_on_a_worker_with_keys_only(keys: str, hung_up: bool) -> None:
    """Without keys SIGHUP would drain the worker."""
    shell, option, line = unit()["Service"]["ExecReload"].split(" ", 2)
    with subprocess.Popen(["sleep", "60"]) as process:
        environment = {
            "MAINPID": str(process.pid),
            "WORKER_ORCD_API_KEY_FILE": keys,
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            [shell, option, line.strip("'").replace("$$", "$")], env=environment, timeout=10, check=False
        )
        assert (done.returncode == 0) is hung_up
        if not hung_up:
            assert process.poll() is None
            process.terminate()
        assert process.wait(10) == (-signal.SIGHUP if hung_up else -signal.SIGTERM)


# The image


def instructions(name: str) -> list[str]:
    """The arguments of each such instruction in the Containerfile."""
    joined = text_of("Containerfile").replace("\\\n", " ")
    return [" ".join(rest.split()) for rest in re.findall(rf"^\s*{name}\s+(.*)$", joined, re.MULTILINE)]


def image_environment() -> dict[str, str]:
    """The image's variables."""
    return dict(pair.split("=", 1) for line in instructions("ENV") for pair in line.split())


def copied() -> list[str]:
    """The paths that are copied from the repository."""
    return [
        name for line in instructions("COPY") if not line.startswith("--from") for name in line.split()[:-1]
    ]


def test_the_image_builds_from_what_it_copies(tmp_path: Path) -> None:
    """Every copied file exists, and they alone build the same package as the whole repository."""
    for name in copied():
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, tmp_path / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
        check=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("worker_orcd/")}
    package = ROOT / "src" / "worker_orcd"
    files = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert packed == files


def test_the_image_is_made_as_a_server_is() -> None:
    """By `make install`, from the lock, into the folder that the second stage copies, with the same Python."""
    (made,) = [line for line in instructions("RUN") if line.startswith("make ")]
    folder = made.removeprefix("make install TO=")
    assert instructions("COPY")[-1] == f"--from=build {folder} {folder}"
    assert image_environment()["PATH"].startswith(f"{folder}/bin:")
    assert {"Makefile", "requirements.lock", "requirements-ray.lock", "tools/"} <= set(copied())
    assert re.search(r"^install:.*\n\t@tools/install\.sh ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "--constraint requirements.lock" in (ROOT / "tools" / "install.sh").read_text()
    first, second = (line.split()[0] for line in instructions("FROM"))
    assert first == second


def test_signals_reach_the_worker_in_the_image_and_it_is_nobody_special() -> None:
    """The worker is process 1, without a shell, and runs as an ordinary user."""
    (entry,) = instructions("ENTRYPOINT")
    assert json.loads(entry) == ["worker-orcd"]
    assert instructions("STOPSIGNAL") == ["SIGTERM"]
    user, group = instructions("USER")[0].split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_image_listens_to_others_and_so_needs_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the key file the worker would refuse to start."""
    environment = {
        name: value for name, value in image_environment().items() if name.startswith("WORKER_ORCD_")
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert instructions("EXPOSE") == [str(settings.port)]
    assert settings.host == "0.0.0.0"  # noqa: S104  # In a container this is the container's own.
    monkeypatch.delenv("WORKER_ORCD_API_KEY_FILE")
    with pytest.raises(ValidationError, match="requires --api-key-file"):
        Settings()


def test_the_images_health_check_says_whether_the_front_lives(worker: RunningWorker) -> None:
    """The exit code is 0 if the front is alive, on any port, and another one if nothing answers."""
    (check,) = re.findall(r"CMD (\[.*\])", text_of("Containerfile"))
    _, *command = json.loads(check)

    def healthy(port: int) -> bool:
        environment = {"WORKER_ORCD_PORT": str(port)}
        done = subprocess.run(
            [sys.executable, *command], env=environment, stderr=subprocess.DEVNULL, timeout=30, check=False
        )
        return done.returncode == 0

    assert healthy(worker.port)
    assert not healthy(free_port())


@pytest.mark.parametrize("to", ["", "relative/folder", "there"])
def test_an_install_never_goes_into_a_folder_that_is_there(tmp_path: Path, to: str) -> None:
    """A worker that runs from the folder would start its next engine from another version."""
    there = tmp_path / "there"
    there.mkdir()
    done = subprocess.run(
        [str(ROOT / "tools" / "install.sh"), "0", str(there) if to == "there" else to],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("install: ")
    assert list(tmp_path.iterdir()) == [there]


# Kubernetes


def manifests(name: str) -> list[dict[str, Any]]:
    """The resources of a file."""
    return list(yaml.safe_load_all(text_of(f"kubernetes/{name}")))


@pytest.fixture
def pod() -> dict[str, Any]:
    """The Deployment's pod."""
    (deployment,) = manifests("deployment.yaml")
    template: dict[str, Any] = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    return template


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    """Its one container."""
    (container,) = pod["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def settings_of(container: dict[str, Any]) -> Settings:
    """The worker's settings in the container: by the image, and by the pod's variables and arguments."""
    variables = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    environment = image_environment() | variables
    image = {option.name: environment.get(option.variable) for option in options()}
    return Settings(**{**{k: v for k, v in image.items() if v}, **given(container["args"])})


def test_a_pod_has_time_for_its_drain(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The grace period covers preStop, the drain after SIGTERM, and the rest of the shutdown."""
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    needed = float(pause) + settings_of(container).drain_sec + AFTER_THE_DRAIN_SEC
    assert pod["spec"]["terminationGracePeriodSeconds"] >= needed


def test_probes_ask_what_exists(container: dict[str, Any]) -> None:
    """Their paths answer without a key, and only readiness follows the engine."""
    paths = create_app(SingleWorker(idle_worker()), silent_narrator(), lambda _: None).openapi()["paths"]
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: get["path"] for name, get in asked.items()} == {
        "startup": "/readyz",
        "readiness": "/readyz",
        "liveness": "/livez",
    }
    for get in asked.values():
        assert "get" in paths[get["path"]]
        assert get["port"] == "http"


def test_ports_and_labels_lead_to_the_worker(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """Both Services reach the port that it listens on."""
    (port,) = container["ports"]
    assert port == {"name": "http", "containerPort": settings_of(container).port}
    any_worker, each = manifests("service.yaml")
    for service in (any_worker, each):
        assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
        assert [wanted["targetPort"] for wanted in service["spec"]["ports"]] == ["http"]
    assert each["spec"]["clusterIP"] == "None"
    assert each["spec"]["publishNotReadyAddresses"] is True
    assert each["spec"]["ports"][0]["port"] == port["containerPort"]


def test_a_services_own_variables_stay_out_of_the_pod(
    pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes turns a Service's name into variables, and one of them would be an invalid option of the worker."""
    any_worker, _ = manifests("service.yaml")
    link = any_worker["metadata"]["name"].upper().replace("-", "_") + "_PORT"
    monkeypatch.setenv(link, "tcp://10.0.0.1:80")
    with pytest.raises(ValidationError):
        Settings()
    assert pod["spec"]["enableServiceLinks"] is False


def test_a_pod_runs_as_the_images_user_and_may_do_nothing_special(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    """No root, no privileges, nowhere to write."""
    user, group = map(int, instructions("USER")[0].split(":"))
    context = pod["spec"]["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["runAsGroup"]) == (True, user, group)
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_keys_are_where_the_worker_looks_for_them(pod: dict[str, Any], container: dict[str, Any]) -> None:
    """The Secret's name, its key, the folder it is mounted at, and who may read it."""
    (secret,) = manifests("secret.yaml.example")
    (mount,) = container["volumeMounts"]
    (volume,) = pod["spec"]["volumes"]
    assert (volume["name"], volume["secret"]["secretName"]) == (mount["name"], secret["metadata"]["name"])
    folder = Path(mount["mountPath"])
    settings = settings_of(container)
    named = {settings.api_key_file, settings.operator_key_file}
    assert named == {folder / name for name in secret["stringData"]}
    assert len(named) == 2, "tenants and operators have keys of their own"
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod["spec"]["securityContext"]["fsGroup"] == pod["spec"]["securityContext"]["runAsGroup"]


def test_the_example_of_a_secret_cannot_be_used_by_mistake(tmp_path: Path) -> None:
    """Its content is not a valid key, and `kubectl apply -f` of the folder skips it."""
    (secret,) = manifests("secret.yaml.example")
    for name, content in secret["stringData"].items():
        (tmp_path / name).write_text(content)
        with pytest.raises(KeyFileError):
            ApiKeys(tmp_path / name)
    folder = DEPLOY / "kubernetes"
    applied = {path.name for path in folder.iterdir() if path.suffix in (".yaml", ".yml", ".json")}
    assert applied == {"deployment.yaml", "service.yaml"}


def test_threads_are_those_that_the_container_may_use(container: dict[str, Any]) -> None:
    """The CPU limit, which is a whole number and equals the request."""
    environment = {one["name"]: one["valueFrom"] for one in container["env"] if "valueFrom" in one}
    assert environment["WORKER_ORCD_THREADS"]["resourceFieldRef"] == {
        "containerName": container["name"],
        "resource": "limits.cpu",
        "divisor": "1",
    }
    assert int(container["resources"]["limits"]["cpu"]) >= 1
    assert container["resources"]["requests"] == container["resources"]["limits"]


# nginx


def directives(name: str) -> dict[str, str]:
    """The directives of an nginx site outside its locations."""
    return dict(
        re.findall(r"^    ([a-z_]+) ([^{}\n]*);$", text_of(name).split("\nserver {")[1], re.MULTILINE)
    )


def test_nginx_waits_longer_than_a_job_can_be_silent() -> None:
    """A stream sends something every 15 s; a complete answer takes as long as its job and a cancel of it."""
    settings = Settings()
    patience = float(directives("nginx.conf")["proxy_read_timeout"].removesuffix("s"))
    assert patience > 2 * KEEP_ALIVE_SEC
    assert patience > settings.inference_timeout_sec + settings.cancel_deadline_sec


def test_nginx_takes_what_the_worker_takes() -> None:
    """Bodies of 1 MiB, kept in memory."""
    site = directives("nginx.conf")
    assert int(site["client_max_body_size"].removesuffix("m")) << 20 == MAX_BODY_BYTES
    assert site["client_body_buffer_size"] == site["client_max_body_size"]


def test_both_nginx_sites_say_the_same() -> None:
    """Except for the upstream, and for passing a request to the next worker."""
    one, several = directives("nginx.conf"), directives("nginx-several.conf")
    assert one.pop("proxy_next_upstream") == "off"
    assert "timeout" not in several.pop("proxy_next_upstream").split()
    assert one == several


# A fleet


def serve_config(name: str) -> dict[str, Any]:
    """The Serve config in a file of `deploy/ray/`."""
    document = yaml.safe_load(text_of(f"ray/{name}"))
    config = document["spec"]["serveConfigV2"] if "spec" in document else document
    return dict(yaml.safe_load(config) if isinstance(config, str) else config)


_CHECKED_BY_SERVE = """
import json, sys
from ray.serve.schema import ServeDeploySchema
from worker_orcd.fleet.deployment import application
(app,) = ServeDeploySchema.model_validate(json.load(sys.stdin)).applications
routers = application()._bound_deployment
workers = routers.init_args[1]._bound_deployment
print(json.dumps([sorted(one.name for one in app.deployments), sorted((routers.name, workers.name))]))
"""


@pytest.mark.needs("ray")
@pytest.mark.parametrize("name", ["serve.yaml", "kuberay.yaml"])
def test_serve_takes_the_config_of_a_fleet(name: str) -> None:
    """By Serve's own schema; it configures the deployments that the application has, by their names."""
    command = [sys.executable, "-W", "ignore", "-c", _CHECKED_BY_SERVE]

    def checked(config: dict[str, Any]) -> "subprocess.CompletedProcess[str]":
        given = json.dumps(config)
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=120, check=False)

    config = serve_config(name)
    (app,) = config["applications"]
    assert (app["name"], app["import_path"]) == ("worker-orcd", "worker_orcd.fleet:app")
    done = checked(config)
    assert done.returncode == 0, done.stderr
    named, existing = json.loads(done.stdout)
    assert named == existing
    assert "ValidationError" in checked(config | {"proxy_location": "Everywhere"}).stderr


def test_a_fleet_on_kubernetes_has_the_keys_and_the_user_of_a_worker_there(pod: dict[str, Any]) -> None:
    """The same secret is mounted at the same place in each pod, for the same user, and named to the workers."""
    service = yaml.safe_load(text_of("ray/kuberay.yaml"))
    cluster = service["spec"]["rayClusterConfig"]
    (app,) = serve_config("kuberay.yaml")["applications"]
    variables = app["runtime_env"]["env_vars"]
    assert variables["WORKER_ORCD_API_KEY_FILE"] == image_environment()["WORKER_ORCD_API_KEY_FILE"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        assert spec["volumes"] == pod["spec"]["volumes"]
        assert spec["enableServiceLinks"] is pod["spec"]["enableServiceLinks"] is False
        for name in ("runAsUser", "runAsGroup", "fsGroup", "runAsNonRoot"):
            assert spec["securityContext"][name] == pod["spec"]["securityContext"][name]
        (container,) = spec["containers"]
        (mount,) = container["volumeMounts"]
        for name in ("WORKER_ORCD_API_KEY_FILE", "WORKER_ORCD_OPERATOR_KEY_FILE"):
            assert Path(variables[name]).parent == Path(mount["mountPath"])
    (worker,) = cluster["workerGroupSpecs"]
    needed = sum(one.get("ray_actor_options", {}).get("num_cpus", 0) for one in app["deployments"])
    (container,) = worker["template"]["spec"]["containers"]
    assert int(container["resources"]["requests"]["cpu"]) >= needed
