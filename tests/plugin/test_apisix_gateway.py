"""How the demo starts an installed APISIX: what its two commands are given (stand-ins here), and their failures."""

import os
import stat
import sys

import pytest
import yaml

from apicost.demo import gateway

INIT = "echo made > conf/nginx.conf"
# Answers on the gateway's port for a moment and then ends, as nginx does that finds another of its ports taken.
FALSE_START = f"""#!{sys.executable}
import socket, time, yaml
listen = yaml.safe_load(open("conf/config.yaml"))["apisix"]["node_listen"][0]
with socket.create_server((listen["ip"], listen["port"])):
    time.sleep(0.3)
print("bind() to 127.0.0.1:9999 failed (98: Address already in use)")
raise SystemExit(1)
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start the gateway of a source tree whose `init` runs some shell code; gives prefix and error."""
    tree, prefix = tmp_path / "apisix-tree", tmp_path / "prefix"
    prefix.mkdir()

    def run(init=INIT, version="3.18.0"):
        for folder in ("bin", "conf", "apisix/cli", "deps"):
            (tree / folder).mkdir(parents=True)
        (tree / "apisix" / "cli" / "apisix.lua").touch()
        (tree / "conf" / "mime.types").write_text("of this tree")
        commands = {
            # As the real one: the code is looked for in the current folder.
            "apisix": "#!/bin/sh\n[ -f apisix/cli/apisix.lua ] || exit 1\n"
            f'case $1 in version) echo "luajit x.lua"; echo {version};; init) {init};; esac\n',
            "openresty": FALSE_START,
        }
        for name, text in commands.items():
            (tree / "bin" / name).write_text(text)
            (tree / "bin" / name).chmod(stat.S_IRWXU)
        # On PATH lies a link, as an installer would make it.
        (tmp_path / "path").mkdir()
        for name in commands:
            (tmp_path / "path" / name).symlink_to(tree / "bin" / name)
        monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{os.environ['PATH']}")
        content = {"routes": [{"id": "a", "uri": "/a"}], "plugins": ["apicost-logger"]}
        apisix = gateway.ApisixGateway(prefix, content, workers=3, more_lua="/more/?.lua;", log_level="info")
        with pytest.raises(gateway.GatewayError) as error:
            apisix.start()
        return apisix, str(error.value)

    return run


def test_a_port_that_answers_is_no_start_without_workers(start):
    """The port is open but the process ends before it has workers: an error with its last words."""
    apisix, said = start()
    assert "did not start" in said and "Address already in use" in said
    assert apisix.process is None


def test_the_tree_that_the_command_lies_in_is_used(start):
    """Code, libraries and the rest of conf/ come from the installation that `apisix` belongs to."""
    apisix, _ = start()
    assert (apisix.prefix / "apisix" / "cli" / "apisix.lua").is_file()
    assert (apisix.prefix / "deps").is_dir()
    assert (apisix.prefix / "conf" / "mime.types").read_text() == "of this tree"
    assert (apisix.prefix / "conf" / "nginx.conf").read_text() == "made\n"


def test_nothing_of_it_listens_on_a_port_that_another_apisix_has(start):
    """Own loopback ports for HTTP and TLS; the services with fixed ports are off."""
    apisix, _ = start()
    settings = yaml.safe_load((apisix.prefix / "conf" / "config.yaml").read_text())
    assert settings["apisix"]["node_listen"] == [{"ip": "127.0.0.1", "port": apisix.http_port}]
    assert settings["apisix"]["ssl"]["listen"] == [{"ip": "127.0.0.1", "port": apisix.https_port}]
    assert settings["apisix"]["enable_admin"] is False and settings["apisix"]["enable_control"] is False
    assert settings["deployment"]["role_data_plane"] == {"config_provider": "yaml"}
    assert settings["nginx_config"].items() >= {"worker_processes": 3, "error_log_level": "info"}.items()
    assert settings["apisix"]["extra_lua_path"] == f"{gateway.lua_dir().parent}/?.lua;/more/?.lua;"
    resources = (apisix.prefix / "conf" / "apisix.yaml").read_text()
    assert yaml.safe_load(resources)["routes"] == [{"id": "a", "uri": "/a"}]
    assert resources.endswith("\n#END\n")


@pytest.mark.parametrize(("version", "says"), [("3.2.0", True), ("3.18.0", False)])
def test_http2_is_asked_for_where_that_version_wants_it(start, version, says):
    """Before 3.9 a listener has its own switch for HTTP/2, later versions refuse it."""
    apisix, _ = start(version=version)
    settings = yaml.safe_load((apisix.prefix / "conf" / "config.yaml").read_text())
    assert settings["apisix"]["ssl"]["listen"][0].get("enable_http2", False) is says


def test_certificates_are_literal_blocks(start):
    """The YAML reader of APISIX 3.2 takes no quoted text over several lines."""
    apisix, _ = start()
    text = (apisix.prefix / "conf" / "apisix.yaml").read_text()
    assert "  cert: |\n" in text and "  key: |\n" in text
    (ssl,) = yaml.safe_load(text)["ssls"]
    assert ssl["cert"] == apisix.self_signed[0].read_text()


def test_each_writing_has_a_second_of_its_own(start):
    """APISIX compares the file's time in whole seconds: two changes at once must not look like one."""
    apisix, _ = start()
    times = []
    for _ in range(3):
        apisix.write_resources()
        times.append(int((apisix.prefix / "conf" / "apisix.yaml").stat().st_mtime))
    assert len(set(times)) == 3


def test_what_init_says_is_told(start):
    """`apisix init` refuses the configuration: its words are in the error."""
    _, said = start(init="echo no such setting; exit 1")
    assert "apisix init failed" in said and "no such setting" in said
