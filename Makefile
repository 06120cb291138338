# Two commands matter: `make demo` and `make test`. Both install what they need first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: demo test check install debian clean bench focus-check
.DEFAULT_GOAL := help

help:
	@echo "make demo   live traffic through a gateway on this machine, and its cost report"
	@echo "make test   linters, types and the whole test suite"
	@echo "make focus-check  FOCUS files of two months against the official validator, in an environment of its own"
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

# The official FOCUS validator is a part of the suite where there is a Python 3.12 for it.
test: check
	@deploy/focus-check install || true
	$(BIN)/pytest

focus-check: install
	@deploy/focus-check install
	@$(BIN)/python -m tests.report.focus_months build/focus
	@deploy/focus-check build/focus/focus-1.2-sample.csv build/focus/focus-1.2-every-kind.csv
	@for file in build/focus/focus-1.4-*.csv; do \
	    $(BIN)/focus-toolkit validate $$file --dataset cost-and-usage --supports SupportsUnitPricing \
	        --supports SupportsMultiplePricingCategories || exit 1; done
	@for file in build/focus/*.csv; do $(BIN)/apicost focus lint $$file || exit 1; done

# Every benchmark that needs nothing but this machine; one JSON object each.
BENCHES := live_exact probe_wire_exact probe_ns probe_ring probe_gateway_cpu plugin_cpu receiver kill_receiver kill_daemon \
           daemon_memory backlog join_accuracy join_speed pipeline_speed meter_speed ledger_write month_report_usage \
           report_month export_formats match_speed match_exchanges match_directory samples_speed focus_export
bench: install
	@for name in $(BENCHES); do echo "# $$name"; $(BIN)/python bench/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) .venv-focus demo-output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
