# Two commands matter: `make demo` and `make test`. Both install what they need first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: demo test check install debian clean bench
.DEFAULT_GOAL := help

help:
	@echo "make demo   live traffic through a gateway on this machine, and its cost report"
	@echo "make test   linters, types and the whole test suite"
	@echo "make bench  every figure of docs/benchmarks.md (long)"
	@echo "make clean  remove what was built here"

# Debian packages only where apt and root are there; otherwise what is missing is named by the doctor.
debian:
	@deploy/install-debian-packages

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

install: debian
	@$(MAKE) --no-print-directory $(VENV)/.installed

demo: install
	$(BIN)/apicost demo --out demo-output

check: install
	$(BIN)/ruff check apicost tests bench
	$(BIN)/mypy

test: check
	$(BIN)/pytest

# Every benchmark that needs nothing but this machine; one JSON object each.
BENCHES := live_exact probe_wire_exact probe_ns probe_ring probe_gateway_cpu plugin_cpu receiver kill_receiver kill_daemon \
           daemon_memory backlog join_accuracy join_speed pipeline_speed meter_speed ledger_write month_report_usage \
           report_month match_speed match_exchanges match_directory samples_speed
bench: install
	@for name in $(BENCHES); do echo "# $$name"; $(BIN)/python bench/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
