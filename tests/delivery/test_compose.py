"""compose.yaml, as far as it can be judged without a Docker engine: nothing here starts a container."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from configparser import ConfigParser
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from app.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "predictive-propositions" in service["image"]}
PASSWORDS = ("POSTGRES", "REDIS", "GRAFANA", "ELASTIC", "KIBANA")
# Their entry scripts write configuration beside their programs.
WRITING = {"kafka", "elasticsearch", "kibana"}
MADE_BY_OPERATORS = "./.propositions/"


def test_the_compose_specification_takes_it():
    program = Path(sys.executable).with_name("check-jsonschema")

    done = subprocess.run(
        [program, "--builtin-schema", "vendor.compose-spec", ROOT / "compose.yaml"],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout


def test_docker_compose_takes_it_where_it_is_installed():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("there is no docker compose")
    environment = {**os.environ, **{f"{name}_PASSWORD": "x" for name in PASSWORDS}}

    subprocess.run(
        [docker, "compose", "--profile", "*", "config", "--quiet"], cwd=ROOT, env=environment, check=True
    )


def test_every_file_that_is_mounted_exists():
    mounted = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
        if volume.startswith("./") and not volume.startswith(MADE_BY_OPERATORS)
    }

    assert mounted and all((ROOT / path).exists() for path in mounted)


def test_every_volume_is_declared_and_every_declared_one_is_used():
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}

    assert {volume for volume in used if volume[0] not in "./"} == set(COMPOSE["volumes"])


def test_our_services_are_told_settings_that_exist():
    settings = {name.upper() for name in Settings.model_fields}

    assert set(OURS) == {"migrate", "feast-apply", "kafka-init", "web", "projector", "train"}
    for service in OURS.values():
        assert set(service["environment"]) <= settings


def test_what_keeps_running_says_how_it_is():
    for name, service in SERVICES.items():
        assert ("healthcheck" in service) == (service["restart"] != "no"), name


def test_who_waits_for_a_task_waits_for_its_end_and_else_for_health():
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            is_task = SERVICES[other]["restart"] == "no"
            assert wait["condition"] == (
                "service_completed_successfully" if is_task else "service_healthy"
            ), name
            if not set(service["profiles"]) <= set(SERVICES[other]["profiles"]):
                assert wait["required"] is False, f"{name} needs {other}, whose profile may be off"


def test_tables_and_features_are_there_before_anything_is_served():
    assert set(SERVICES["feast-apply"]["depends_on"]) == {"migrate", "redis"}
    for name in ("web", "projector"):
        assert {"feast-apply", "kafka-init"} == set(SERVICES[name]["depends_on"])


def test_no_secret_has_a_default():
    secrets = re.findall(r"(?<!\$)\$\{(\w*(?:PASSWORD|SECRET|TOKEN|KEY)\w*)(:?[^}]*)\}", TEXT)

    assert {name for name, _ in secrets} == {f"{name}_PASSWORD" for name in PASSWORDS}
    assert all(rest.startswith(":?") for _, rest in secrets)
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name:
                assert value.startswith("${") and value.endswith("}"), name


def test_all_variables_and_their_making_are_told_at_the_top():
    head = TEXT[: TEXT.index("\nname:")]
    told = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", head)) | {f"{name}_PASSWORD" for name in PASSWORDS}

    assert f"for name in {' '.join(PASSWORDS)}; do" in head
    assert set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", TEXT)) <= told


def test_images_are_pinned_and_ours_is_this_version():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    version = setup["metadata"]["version"]
    for name, service in SERVICES.items():
        image = service["image"].replace("${PROPOSITIONS_VERSION:-", "").replace("}", "")
        tag = image.rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), image
        if name in OURS:
            assert tag.removesuffix("-training") == version


def test_nothing_is_published_beyond_this_machine():
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]

    assert published and all(port.startswith("127.0.0.1:") for port in published)


def test_containers_have_no_rights_that_they_do_not_need():
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"] and "cap_add" not in service, name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is (name not in WRITING), name
        assert not service.get("privileged") and "docker.sock" not in str(service), name


def test_prometheus_scrapes_services_that_are_there_at_their_private_ports():
    targets = ROOT / "helm/propositions/files/prometheus/targets"
    for path in targets.glob("*.yml"):
        for group in yaml.safe_load(path.read_text()):
            for target in group["targets"]:
                host, port = target.split(":")
                asked = f"{SERVICES[host]['healthcheck']} {SERVICES[host].get('environment')}"
                assert port in asked, target


class Recorder(HTTPServer):
    """Stands for Elasticsearch and Kibana, and keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Record)
        self.asked: list[tuple[str, str, bytes]] = []


class _Record(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.command, self.path, body))
        is_known = self.headers["Authorization"] == "Basic ZWxhc3RpYzplLXB3"
        self.send_response(200 if is_known else 401)
        self.end_headers()
        self.wfile.write(b'{"id":"i-1","name":"propositions-filebeat","api_key":"k-1","encoded":"aQ=="}')

    do_PUT = do_POST = _answer

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with Recorder() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_elasticsearch_and_kibana_are_brought_what_the_document_lists(recorder, tmp_path):
    files = ROOT / "helm/propositions/files/elastic"
    url = f"http://127.0.0.1:{recorder.server_port}"
    environment = {
        "PATH": os.environ["PATH"],
        "FILES": str(files),
        "KEY_FILE": str(tmp_path / "api-key"),
        "ELASTICSEARCH_URL": url,
        "KIBANA_URL": url,
        "ELASTIC_PASSWORD": "e-pw",
        "KIBANA_PASSWORD": "k-pw",
    }
    for part in ("elasticsearch", "elasticsearch", "kibana"):
        subprocess.run(["sh", ROOT / "helm/compose/elastic-setup", part], env=environment, check=True)

    put = {path: body for method, path, body in recorder.asked if method == "PUT"}
    # Without machine learning, which needs a licence.
    listed = re.findall(
        r"^\| ([\w.-]+) \| `PUT (_(?!ml)\S+)` \|", (ROOT / "docs/logs.md").read_text(), re.MULTILINE
    )
    assert len(listed) == 5
    assert {path: put.get(f"/{path}") for _, path in listed} == {
        path: (files / name).read_bytes() for name, path in listed
    }
    assert json.loads(put["/_security/user/kibana_system/_password"]) == {"password": "k-pw"}
    assert (tmp_path / "api-key").read_text() == "i-1:k-1\n"
    assert oct((tmp_path / "api-key").stat().st_mode)[-3:] == "600"
    keys = [json.loads(body) for _, path, body in recorder.asked if path == "/_security/api_key"]
    assert len(keys) == 1 and keys[0]["role_descriptors"]["shipper"]["cluster"] == ["monitor"]
    assert any(path.startswith("/api/saved_objects/_import") for _, path, _ in recorder.asked)
