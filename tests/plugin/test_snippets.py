"""The configuration snippets agree with the plugin and with the sidecar's defaults."""

import re
from pathlib import Path

import yaml

from apicost.config import ReceiverSettings
from apicost.demo.gateway import lua_dir

ROOT = Path(__file__).parents[2]
PLUGIN = (ROOT / "apisix" / "plugins" / "apicost-logger.lua").read_text()
SETTINGS = re.findall(r"^        (\w+) = \{$", PLUGIN.split("local metadata_schema")[1].split("local _M")[0], re.M)


def defaults():
    text = PLUGIN.split("local metadata_schema")[1].split("local _M")[0]
    blocks = re.findall(r"^        (\w+) = \{$(.*?)^        \},$", text, re.M | re.S)
    found = ((name, re.search(r"default = (.*?),$", block, re.M)) for name, block in blocks)
    return {name: value.group(1) for name, value in found if value}


def test_the_plugins_defaults_are_the_sidecars():
    """Receiver, token file and spool folder: a plugin and a sidecar without settings find each other."""
    sidecar = ReceiverSettings()
    assert defaults()["receiver"] == f'"http://{sidecar.listen}"'
    assert defaults()["token_file"] == f'"{sidecar.token_file}"'
    assert defaults()["spool_dir"] == f'"{sidecar.exit_spool_dir}"'
    assert int(defaults()["batch_max_lines"]) <= sidecar.max_lines_per_batch


def test_snippets_name_only_settings_that_exist():
    """config.yaml and apisix.yaml are valid YAML, name the plugin, and set what it knows."""
    config = yaml.safe_load((ROOT / "deploy" / "apisix" / "config.yaml").read_text())
    assert "apicost-logger" in config["plugins"]
    assert config["apisix"]["extra_lua_path"].endswith("/?.lua")
    resources = yaml.safe_load((ROOT / "deploy" / "apisix" / "apisix.yaml").read_text())
    assert "apicost-logger" in resources["global_rules"][0]["plugins"]
    (metadata,) = resources["plugin_metadata"]
    assert len(SETTINGS) >= 11
    assert set(config["plugin_attr"]["apicost-logger"]) | set(metadata) - {"id"} <= set(SETTINGS)


def test_each_setting_is_documented():
    """docs/plugin.md has a row for each setting, with its default where that is a single value."""
    text = (ROOT / "docs" / "plugin.md").read_text()
    for name in SETTINGS:
        assert f"| `{name}` |" in text, name
    for name, value in defaults().items():
        (shown,) = re.findall(rf"^\| `{name}` \| (.*?) \|", text, re.M)
        wanted = re.findall(r'"([^"]*)"', value) or [value]
        assert re.findall(r"`([^`]*)`", shown) == wanted or [shown] == wanted, name


def test_the_plugin_is_found():
    """lua_dir has plugin and host."""
    assert (lua_dir() / "plugins" / "apicost-logger" / "line.lua").is_file()
    assert (lua_dir() / "host" / "host.lua").is_file()
