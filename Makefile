# The distribution's own first, if it can make what is needed: it is built with profile-guided optimization, one that pyenv builds
# is not unless it is told to, and answers fewer requests.
IS_ENOUGH := import ensurepip, os, sys, sysconfig; assert sys.version_info >= (3, 11); os.stat(sysconfig.get_path("include") + "/Python.h")
PYTHON ?= $(shell for python in /usr/bin/python3.11 python3.11 python3; do \
	$$python -c '$(IS_ENOUGH)' 2> /dev/null && command -v $$python && exit; done; command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# What an installation consists of: the packages that it needs, and what is compiled.
DECLARED := setup.cfg setup.py constraints.txt $(shell find app -name '*.pyx')
# Taken away before it is made: what could not be compiled must not be what was compiled of something older.
COMPILED := $(shell find app -name '*.pyx' | sed 's/pyx$$/*so/; p; s/\*so$$/c/')
# E501: the formatter wraps code, and what it cannot wrap is text. B008: typer's defaults are calls.
# PT018: two facts about one thing may be one assertion.
# S (bandit's rules), with reasons: S608 SQL is put together from names of this project's own tables and columns, values are
# bound. S603, S606 commands are lists of this project's own words, without a shell. S311 no random number here is a
# secret, those come from `secrets`. S310 addresses are this machine's. Tests assert, and know the passwords of their servers.
RUFF_RULES := --select E,F,I,B,UP,SIM,C4,PT,RUF,S --ignore E501,B008,PT018,S608,S603,S606,S311,S310 --per-file-ignores 'tests/**:S'
RUFF_STYLE := --line-length 110 --target-version py311

.PHONY: demo test end-to-end-test chart-test chart-golden image-steps observability-test monitoring dashboards dashboard-screens lint audit format bench scaling gameday soak fuzz sbom profile clean

demo: $(VENV)/.demo
	$(BIN)/propositions demo $(if $(ONCE),--once,)

test: monitoring
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/e2e --ignore tests/image --ignore tests/chart

# Short game days, a rolling restart and the whole way, on whole stacks and against the clock: one after the other.
end-to-end-test: $(VENV)/.dev
	$(BIN)/python -m pytest tests/e2e

# What the Dockerfile does, without Docker: builds in a clean folder, and runs it as nobody on a read-only system.
image-steps: $(VENV)/.dev
	$(BIN)/python -m pytest -s tests/image

# Dashboards, alerts, scraping and logs, against a real Prometheus, Alertmanager and OpenSearch; says what it skips without them.
observability-test: monitoring
	$(BIN)/python -m pytest -rs tests/observability

# Prometheus, Alertmanager and rsyslog for tests: what is not on the PATH comes out of Debian's packages, without installing them.
monitoring: $(VENV)/.dev
	$(BIN)/python -m tests.observability.fetch

# Grafana's JSON, from helm/dashboards/, and what Kibana imports, from helm/kibana/.
dashboards: $(VENV)/.dev
	$(BIN)/python -m helm.dashboards
	$(BIN)/python -m helm.kibana

# Pictures of them in docs/images/, while a service is used and loses its stores: about seven minutes.
dashboard-screens: monitoring
	$(BIN)/python -m tests.observability.screens

# The Helm chart. The first time Go builds Helm, which takes a minute and a half of CPU.
chart-test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 tests/chart

# After a change of the chart or of a setting: look at what `git diff` says then.
chart-golden: $(VENV)/.dev
	$(BIN)/python -m tests.chart.renew

lint: $(VENV)/.dev
	$(BIN)/ruff check $(RUFF_STYLE) $(RUFF_RULES) .
	$(BIN)/ruff format --check $(RUFF_STYLE) .
	$(BIN)/lint-imports

# Known vulnerabilities of what is installed. Apart from lint, because it needs an index that publishes advisories.
audit: $(VENV)/.dev
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

format: $(VENV)/.dev
	$(BIN)/ruff format $(RUFF_STYLE) .
	$(BIN)/ruff check --fix $(RUFF_STYLE) $(RUFF_RULES) .

# Everything takes about twenty minutes: QUICK=1 is a trial, ONLY=rows,observability,growth,promotion,projection,freshness,materialize a part.
bench: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

# docs/scaling.md, by docs/scaling-costs.json: figures of build/bench/summary.json that the page is to rest on.
scaling: $(VENV)/.dev
	$(BIN)/python -m tests.docs.scaling

# About a quarter of an hour; SHORT=1 is a trial, SCENARIO=events, serving or alerts (more than an hour) a part.
gameday: $(VENV)/.demo
	$(BIN)/propositions gameday $(if $(SCENARIO),--scenario $(SCENARIO)) $(if $(SHORT),--short) --json build/gameday/gameday.json

# Ten minutes of load with faults now and then: nothing may grow. SHORT=1 is a trial.
soak: $(VENV)/.demo
	$(BIN)/propositions gameday --scenario soak $(if $(SHORT),--short) --json build/gameday/soak.json

# Some ten thousand requests that schemathesis makes of the OpenAPI document.
fuzz: $(VENV)/.dev
	FUZZ_EXAMPLES=400 $(BIN)/python -m pytest tests/integration/test_openapi_fuzz.py tests/unit/test_fuzz.py

# What the service is made of, in CycloneDX' format.
sbom: $(VENV)/.dev
	mkdir -p build
	$(BIN)/cyclonedx-py environment $(VENV) --output-format JSON --output-file build/sbom.json

profile: $(VENV)/.bench
	$(BIN)/python -m tests.benchmarks.profile $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache $(COMPILED)

# A stamp per set of extras: what is installed is installed again only when its declaration changes.
$(VENV)/.demo: $(DECLARED)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(COMPILED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,training]'
	touch $@

$(VENV)/.dev: $(DECLARED)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(COMPILED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,training,dev]'
	touch $@

$(VENV)/.bench: $(DECLARED)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(COMPILED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[embedded,training,bench]'
	touch $@
