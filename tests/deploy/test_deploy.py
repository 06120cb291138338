"""What can be known of deploy/ without a container runtime, a cluster or a booted systemd."""

import json
import os
import re
import shutil
import stat
import subprocess
from configparser import RawConfigParser
from pathlib import Path

import pytest
import yaml

from apicost import config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
IMAGE_UID = 636  # user apisix of the stock image
PLUGIN = (ROOT / "apisix/plugins/apicost-logger.lua").read_text()
YAML_FILES = sorted(p for p in DEPLOY.rglob("*.yaml") if "specs" not in p.relative_to(DEPLOY).parts)


def documents(path):
    return [d for d in yaml.safe_load_all(path.read_text()) if d is not None]


def kubernetes():
    return {(d["kind"], d["metadata"]["name"]): d for d in documents(DEPLOY / "kubernetes/gateway.yaml")}


def pod():
    return kubernetes()["StatefulSet", "apisix"]["spec"]["template"]["spec"]


def container(name):
    return next(c for c in pod()["containers"] if c["name"] == name)


def compose():
    return documents(DEPLOY / "compose.yaml")[0]


def config_map(name, key):
    return kubernetes()["ConfigMap", name]["data"][key]


def mounts(service):
    """Where each volume or folder of a compose service appears inside it."""
    return {target: source for source, target, *_ in (v.split(":") for v in compose()["services"][service]["volumes"])}


def in_compose(folder):
    """The sidecar's settings in compose.yaml, its configuration and the documents where they are mounted."""
    (folder / "apicost.yaml").write_text((DEPLOY / "compose/apicost.yaml").read_text())
    (folder / "specs").symlink_to(ROOT / "specs")
    return config.load(folder / "apicost.yaml")


@pytest.fixture
def pairs(tmp_path):
    """For each setup: the sidecar's settings, APISIX's config and resources, as they would be read there."""
    written = tmp_path / "kubernetes.yaml"
    # The image has the sample documents under /opt/apicost/share: here they are the checkout's.
    written.write_text(config_map("apicost", "apicost.yaml").replace("/opt/apicost/share", str(ROOT)))
    return {
        "compose": (
            in_compose(tmp_path),
            documents(DEPLOY / "compose/config.yaml")[0],
            documents(DEPLOY / "compose/apisix.yaml")[0],
        ),
        "kubernetes": (
            config.load(written),
            yaml.safe_load(config_map("apisix", "config.yaml")),
            yaml.safe_load(config_map("apisix", "apisix.yaml")),
        ),
    }


def metadata_defaults():
    """What the plugin's schema has as default for each key of its metadata; None where it has none."""
    block = PLUGIN[PLUGIN.index("local metadata_schema") : PLUGIN.index("local _M = {")]
    found = {}
    for name, body in re.findall(r"^        (\w+) = \{\n(.*?)^        \},", block, re.M | re.S):
        default = re.search(r'^            default = "?([^"\n]*?)"?,$', body, re.M)
        found[name] = default[1] if default else None
    return found


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda p: str(p.relative_to(DEPLOY)))
def test_yaml_is_well_formed(path):
    """Every YAML file reads, without a key that stands twice."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(key) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{path}: a key of {keys} stands twice"
        return loader.construct_mapping(node, deep=True)

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    assert list(yaml.load_all(path.read_text(), Loader=Strict))


def test_the_example_configuration_loads():
    """deploy/apicost.yaml is accepted as it stands, and its price book and documents exist."""
    settings = config.load(DEPLOY / "apicost.yaml")
    assert settings.prices.is_file()
    assert {api.id for api in settings.apis} == {"shop", "media"}
    assert settings.run_as == "apicost"


def test_the_example_agrees_with_the_plugins_defaults():
    """On a host the plugin needs no settings: receiver, token and spool are the defaults of both sides."""
    settings, defaults = config.load(DEPLOY / "apicost.yaml"), metadata_defaults()
    assert defaults["receiver"] == f"http://{settings.receiver.listen}"
    assert defaults["token_file"] == str(settings.receiver.token_file)
    assert defaults["spool_dir"] == str(settings.receiver.exit_spool_dir)


@pytest.mark.parametrize("setup", ["compose", "kubernetes"])
def test_gateway_plugin_and_sidecar_agree(pairs, setup):
    """The plugin is loaded, in a global rule, and posts to where the sidecar listens, with the token it made."""
    settings, gateway, resources = pairs[setup]
    assert "apicost-logger" in gateway["plugins"]
    assert gateway["deployment"]["role_data_plane"]["config_provider"] == "yaml"
    assert any("apicost-logger" in rule["plugins"] for rule in resources["global_rules"])
    metadata = next(m for m in resources["plugin_metadata"] if m["id"] == "apicost-logger")
    assert set(metadata) - {"id"} <= set(metadata_defaults()), "a key that the plugin does not know"
    assert metadata["receiver"] == f"http://{settings.receiver.listen}"
    assert metadata["token_file"] == str(settings.receiver.token_file)
    assert metadata["spool_dir"] == str(settings.receiver.exit_spool_dir)
    assert gateway["apisix"]["node_listen"] in settings.probe.gateway_ports
    used = {name for route in resources["routes"] for name in route.get("plugins", {})}
    assert used <= set(gateway["plugins"])


@pytest.mark.parametrize("name", ["compose/apisix.yaml", "kubernetes/gateway.yaml"])
def test_standalone_resources_end_with_their_mark(name):
    """APISIX takes a standalone file only when its last line is #END."""
    text = (DEPLOY / name).read_text() if "compose" in name else config_map("apisix", "apisix.yaml")
    assert text.rstrip().splitlines()[-1] == "#END"


def test_the_lua_path_of_compose_leads_to_the_plugin(pairs):
    """The gateway's extra_lua_path, through the mounted folder, finds apisix.plugins.apicost-logger."""
    template = pairs["compose"][1]["apisix"]["extra_lua_path"]
    wanted = template.replace("?", "apisix/plugins/apicost-logger")
    source = next((s, t) for t, s in mounts("apisix").items() if wanted.startswith(t + "/"))
    assert (DEPLOY / source[0] / wanted[len(source[1]) + 1 :]).resolve().is_file()


def test_the_lua_path_of_kubernetes_is_what_the_init_container_fills(pairs):
    """The init container copies `share/apisix` to where extra_lua_path looks."""
    template = pairs["kubernetes"][1]["apisix"]["extra_lua_path"]
    command = pod()["initContainers"][0]["command"][-1]
    copied, target = re.search(r"cp -r (\S+) (\S+)", command).groups()
    assert copied == "/opt/apicost/share/apisix"
    assert template == f"{target.rstrip('/')}/?.lua"
    assert (ROOT / "apisix/plugins/apicost-logger.lua").is_file()


def test_compose_mounts_what_exists_and_what_is_configured(pairs):
    """Mounted files exist; token, spool, state and configuration lie on volumes of the right container."""
    settings = pairs["compose"][0]
    named = set(compose()["volumes"])
    for service in ("apisix", "apicost"):
        for source in mounts(service).values():
            assert source in named or (DEPLOY / source).exists(), source
        assert mounts(service)[str(settings.receiver.token_file.parent)] == "shared"
    assert settings.receiver.exit_spool_dir.is_relative_to(settings.receiver.token_file.parent)
    assert mounts("apicost")[str(settings.state_dir)] == "state"
    assert mounts("apicost")["/etc/apicost/specs"] == "../specs"
    sidecar = compose()["services"]["apicost"]
    assert sidecar["network_mode"] == sidecar["pid"] == "service:apisix"
    assert sidecar["cgroup"] == "host"
    assert set(compose()["services"]) >= {"apisix", "apicost", "backend"}


def test_published_ports_are_those_of_the_configuration(pairs):
    """The gateway's ports and the page's are published, the page's on loopback only, the receiver's nowhere."""
    settings = pairs["compose"][0]
    published = compose()["services"]["apisix"]["ports"]
    inside = {int(p.rsplit(":", 1)[1]) for p in published}
    web = int(settings.web.rsplit(":", 1)[1])
    assert inside == {*settings.probe.gateway_ports, web}
    assert f"127.0.0.1:{web}:{web}" in published
    assert settings.receiver.listen.startswith("127.0.0.1:")


def test_kubernetes_names_what_it_defines(pairs):
    """Volumes, ports and ConfigMaps that are used are defined; the Service finds pod and ports."""
    settings, spec = pairs["kubernetes"][0], pod()
    stateful = kubernetes()["StatefulSet", "apisix"]["spec"]
    claims = {c["metadata"]["name"] for c in stateful["volumeClaimTemplates"]}
    volumes = {v["name"] for v in spec["volumes"]} | claims
    for each in spec["containers"] + spec["initContainers"]:
        for mount in each["volumeMounts"]:
            assert mount["name"] in volumes
            if "subPath" in mount:
                assert mount["subPath"] in kubernetes()["ConfigMap", mount["name"]]["data"]
    for volume in spec["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in kubernetes()
    named = {p["name"]: p["containerPort"] for c in spec["containers"] for p in c["ports"]}
    service = kubernetes()["Service", "apisix"]["spec"]
    assert all(named[p["targetPort"]] == p["port"] for p in service["ports"])
    assert service["selector"].items() <= stateful["template"]["metadata"]["labels"].items()
    assert stateful["selector"]["matchLabels"] == stateful["template"]["metadata"]["labels"]
    assert stateful["serviceName"] == "apisix"
    assert named["apicost"] == int(settings.web.rsplit(":", 1)[1])
    assert named["http"] in settings.probe.gateway_ports
    assert str(named["apicost"]) == stateful["template"]["metadata"]["annotations"]["prometheus.io/port"]
    paths = {m["mountPath"]: m["name"] for m in container("apicost")["volumeMounts"]}
    assert paths[str(settings.state_dir)] in claims
    assert paths[str(settings.receiver.token_file.parent)] == "shared"
    assert spec["shareProcessNamespace"] is True


def test_gateway_and_sidecar_share_one_user(tmp_path):
    """The token has mode 0600, so image, entry point and gateway container use the stock image's user."""
    dockerfile, entry = (DEPLOY / "Dockerfile").read_text(), (DEPLOY / "entrypoint.sh").read_text()
    assert f"useradd --uid {IMAGE_UID} --gid {IMAGE_UID}" in dockerfile
    assert re.search(r"^gateway_user=(\d+)", entry, re.M)[1] == str(IMAGE_UID)
    assert container("apisix")["securityContext"]["runAsUser"] == IMAGE_UID
    user = re.search(r"useradd .*? (\w+)$", dockerfile, re.M)[1]
    assert user == in_compose(tmp_path).run_as


def test_the_entry_points_paths_are_the_configurations(pairs):
    """What the entry point makes is what both configurations read."""
    entry = (DEPLOY / "entrypoint.sh").read_text()
    shared = re.search(r"^shared=(\S+)", entry, re.M)[1]
    for settings, _, _ in pairs.values():
        assert str(settings.receiver.token_file) == f"{shared}/token"
        assert str(settings.receiver.exit_spool_dir) == f"{shared}/spool"


def test_the_entry_point_makes_a_token_that_the_receiver_takes(tmp_path):
    """Run here with its paths bent, it makes token and spool once, keeps the token, and starts apicost."""
    if os.geteuid() != 0:
        pytest.skip("root is missing: the entry point gives files to another user")
    from apicost.ingest.receiver import read_token

    script = (DEPLOY / "entrypoint.sh").read_text()
    script = script.replace("/run/apicost", str(tmp_path)).replace("/opt/apicost/bin/apicost", "echo")
    tokens = []
    for _ in range(2):
        said = subprocess.run(
            ["sh", "-c", script, "entry", "run", "-c", "x"], capture_output=True, text=True, check=True
        )
        assert said.stdout == "run -c x\n"
        tokens.append(read_token(tmp_path / "token"))
    assert tokens[0] == tokens[1] and len(tokens[0]) == 64
    for path, mode in ((tmp_path / "token", 0o600), (tmp_path / "spool", 0o700)):
        assert path.stat().st_uid == IMAGE_UID
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_image_is_built_from_what_exists():
    """Instructions are known, copied files exist and reach the build, the loader's needs are installed."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    known = {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in lines} <= known
    stages = [line for line in lines if line.startswith("FROM")]
    assert len(stages) == 2 and lines[0] == stages[0]
    sent = {p[1:] for p in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if p.startswith("!")}
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            for source in [word for word in line.split()[1:-1] if not word.startswith("--")]:
                assert (ROOT / source).exists(), source
                assert source in sent, f"{source} is kept out of the build"
    for instruction in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        body = next(line for line in lines if line.startswith(instruction))
        assert json.loads(body[body.index("[") :])
    final = text[text.rindex("FROM") :]
    assert "python3-bpfcc" in final, "the loader needs bcc"
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()}
    carried = re.search(r"CARRIED = \{(.*?)\}", (ROOT / "setup.py").read_text())[1]
    assert set(re.findall(r'"(\w+)":', carried)) <= copied, "the wheel would lack a folder"


def test_ports_of_the_image_are_the_defaults():
    """What the image exposes and checks is where the defaults listen."""
    text = (DEPLOY / "Dockerfile").read_text()
    defaults = config.Config()
    ports = {defaults.receiver.listen.rsplit(":", 1)[1], defaults.web.rsplit(":", 1)[1]}
    assert set(re.search(r"^EXPOSE (.*)$", text, re.M)[1].split()) == ports
    assert f"127.0.0.1:{defaults.web.rsplit(':', 1)[1]}/healthz" in text
    assert "/healthz" in (ROOT / "apicost/web/app.py").read_text()


def unit():
    parser = RawConfigParser(strict=False)
    parser.optionxform = str
    parser.read_string((DEPLOY / "apicost.service").read_text())
    return parser


def test_the_unit_gives_the_loader_what_it_asks_for_and_little_more():
    """The capabilities are those that the loader checks and those that giving up root takes."""
    from apicost.ingest import loader

    service = unit()["Service"]
    granted = set(service["CapabilityBoundingSet"].split())
    numbers = {name: getattr(loader, f"_{name}") for name in ("CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON")}
    assert numbers == {"CAP_NET_ADMIN": 12, "CAP_BPF": 39, "CAP_PERFMON": 38}
    attach = set(numbers)
    assert granted == attach | {"CAP_SETUID", "CAP_SETGID", "CAP_CHOWN", "CAP_DAC_OVERRIDE"}
    added = {f"CAP_{name}" for name in compose()["services"]["apicost"]["cap_add"]}
    assert added == granted | {"CAP_SYS_PTRACE"}, "compose finds the gateway by port, the unit by its pid file"
    assert "AmbientCapabilities" not in service
    assert "bpf" in service["SystemCallFilter"].split()
    hardened = ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "ProtectKernelModules")
    assert all(service[name] == "yes" for name in hardened)
    assert service["ProtectSystem"] == "strict"


def test_the_units_paths_are_the_configurations():
    """The unit may write where the configuration writes; its user and folders come from the files beside it."""
    service, settings = unit()["Service"], config.load(DEPLOY / "apicost.yaml")
    assert str(settings.state_dir) == f"/var/lib/{service['StateDirectory']}"
    assert str(settings.receiver.exit_spool_dir) in service["ReadWritePaths"].split()
    assert service["ExecStart"].split()[-1] == "/etc/apicost/apicost.yaml"
    assert service["ExecStart"].split()[1] == "run"
    users = (DEPLOY / "apicost.sysusers.conf").read_text()
    assert re.search(r"^u (\S+) ", users, re.M)[1] == settings.run_as
    folders = (DEPLOY / "apicost.tmpfiles.conf").read_text()
    line = re.search(r"^d (\S+) (\d+) (\S+) (\S+)", folders, re.M)
    assert (line[1], line[3]) == (str(settings.receiver.exit_spool_dir), settings.run_as)
    # Sticky, and not to be listed by others: workers may add files and not take each other's away.
    assert line[2] == "1733"


def test_systemd_takes_the_unit(tmp_path):
    """`systemd-analyze verify` has nothing to say, and the exposure it scores stays low."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is missing")
    copy = tmp_path / "apicost.service"
    copy.write_text((DEPLOY / "apicost.service").read_text().replace("/opt/apicost/bin/apicost", "/bin/true"))
    said = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)
    about_it = [line for line in said.stderr.splitlines() if "apicost" in line]
    assert not about_it, about_it
    scored = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=35", copy], capture_output=True, text=True
    )
    assert scored.returncode == 0, scored.stdout[-600:] + scored.stderr


@pytest.mark.parametrize("name", ["entrypoint.sh", "install-debian-packages"])
def test_shell_scripts_are_well_formed(name):
    """sh reads them without running them, and they are executable."""
    assert subprocess.run(["sh", "-n", DEPLOY / name], check=False).returncode == 0
    assert os.access(DEPLOY / name, os.X_OK)


def test_the_readme_names_every_file():
    """Whoever opens deploy/ finds each file explained."""
    text = (DEPLOY / "README.md").read_text()
    for path in DEPLOY.rglob("*"):
        parts = path.relative_to(DEPLOY).parts
        if path.is_file() and parts[0] != "specs" and path.name != "README.md":
            assert path.name in text, path


def test_the_snippets_for_apisix_agree_with_the_example():
    """deploy/apisix/ says for a host what deploy/apicost.yaml says, and names only what the plugin knows."""
    settings = config.load(DEPLOY / "apicost.yaml")
    gateway = documents(DEPLOY / "apisix/config.yaml")[0]
    own = gateway["plugin_attr"]["apicost-logger"]
    assert own["receiver"] == f"http://{settings.receiver.listen}"
    assert own["token_file"] == str(settings.receiver.token_file)
    assert own["spool_dir"] == str(settings.receiver.exit_spool_dir)
    resources = documents(DEPLOY / "apisix/apisix.yaml")[0]
    metadata = next(m for m in resources["plugin_metadata"] if m["id"] == "apicost-logger")
    assert (set(metadata) | set(own)) - {"id"} <= set(metadata_defaults())
    assert "apicost-logger" in gateway["plugins"]
    # The README links the plugin to where the snippet's Lua path looks.
    path = gateway["apisix"]["extra_lua_path"].removesuffix("/?.lua")
    assert f"ln -sfn share/apisix {path}/apisix" in (DEPLOY / "README.md").read_text()
