# Everything by name: `make` alone prints what there is.
# Each target works on a fresh clone and again after that.

PYTHON ?= python3
PORT ?= 8000
ARGS ?=

RUN := .venv/bin/python
DEMO := .venv-demo/bin/python
BENCH := .venv-bench/bin/python
# What a developer's shell has set for a server of their own must not leak into tests and demo.
EMBEDDED := env -u DATABASE_URL -u REDIS_URL -u SECRET_KEY -u RECOVERY_FAULTPOINTS

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo demo-clean test soak check bench bench-full coverage messages reference screenshots lock

help: ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/stamp ## make .venv from the hashed lock file (system packages included)

.venv/stamp: requirements/dev.lock
	@.ci/packages "$(PYTHON)"
	@.ci/venv .venv requirements/dev.lock "$(PYTHON)"
	@touch $@

.venv-demo/stamp: requirements/runtime.lock
	@.ci/venv .venv-demo requirements/runtime.lock "$(PYTHON)"
	@touch $@

demo: .venv-demo/stamp ## run it on the embedded default with real cut plans (PORT=8000)
	@$(EMBEDDED) DEBUG=true PORT=$(PORT) $(DEMO) manage.py demo $(ARGS)

demo-clean: ## forget the demo: its environment and the embedded database
	rm -rf .venv-demo var/demo-* var/db.sqlite3* var/metrics

test: setup ## run the whole suite, on SQLite and on MariaDB with Redis (ARGS for pytest)
	@$(EMBEDDED) $(RUN) -m tests.both $(ARGS)

soak: setup ## ten minutes of work under every kind of fault (ARGS="--minutes 60 --seed 7")
	$(EMBEDDED) DEBUG=true $(RUN) -m tests.faults.soak $(ARGS)

check: setup ## lint, format, types, contracts, migrations, system checks, locks
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(EMBEDDED) $(RUN) manage.py makemigrations --check --dry-run
	$(EMBEDDED) $(RUN) manage.py check
	@echo '$(RUN) manage.py check --deploy --fail-level WARNING  # as in production'
	@$(EMBEDDED) SECRET_KEY="$$($(RUN) -c 'import secrets; print(secrets.token_urlsafe(50))')" \
		DATABASE_URL=mysql://user:password@db.example/recovery \
		REDIS_URL=rediss://:password@cache.example:6379/0 METRICS_TOKEN=bearer-of-the-scraper \
		DEBUG=false PROXY_COUNT=1 ALLOWED_HOSTS=recovery.example \
		AUDIT_SEAL_KEYS=a-key-of-the-seals-alone-0123456789 \
		AUDIT_ARCHIVE=/var/lib/recovery-audit/warm AUDIT_COLD=/var/lib/recovery-audit/cold \
		$(RUN) manage.py check --deploy --fail-level WARNING
	$(RUN) .ci/hygiene.py

.venv-bench/stamp: requirements/bench.lock
	@.ci/packages "$(PYTHON)"
	@.ci/venv .venv-bench requirements/bench.lock "$(PYTHON)"
	@touch $@

bench: .venv-bench/stamp ## measure everything beside its floor, ten minutes (ARGS="--only drain,latency")
	@$(EMBEDDED) $(BENCH) -m tests.servers -- $(BENCH) -m benchmarks $(ARGS)

bench-full: .venv-bench/stamp ## the same, with tables of up to five million rows
	@$(EMBEDDED) $(BENCH) -m tests.servers -- $(BENCH) -m benchmarks --full $(ARGS)

coverage: setup ## branch coverage of the suite on MariaDB with Redis
	$(EMBEDDED) $(RUN) -m tests.servers -- $(RUN) -m pytest --cov --cov-report=term $(ARGS)

messages: setup ## gather strings to translate, and compile what is translated
	@for app in recovery ledger splits; do \
		mkdir -p $$app/locale; \
		(cd $$app && ../$(RUN) -m django makemessages -l zh_Hans --no-wrap --add-location file \
			--no-obsolete && ../$(RUN) -m django compilemessages -l zh_Hans) || exit; \
	done

reference: setup ## write docs/environment.md from what the settings ask for
	$(RUN) -m settings.reference

screenshots: setup ## take the README's screenshots of a fresh demo
	$(EMBEDDED) DJANGO_SETTINGS_MODULE=settings.base $(RUN) -m tests.browser.screenshots $(ARGS)

UV ?= uv
COMPILE := $(UV) pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-annotate --no-strip-extras --quiet

lock: ## resolve the lock files anew (needs uv)
	$(COMPILE) --output-file requirements/runtime.lock
	$(COMPILE) --extra mysql --extra server --extra s3 --extra tracing --group dev \
		--output-file requirements/dev.lock
	$(COMPILE) --extra mysql --extra server --extra s3 --extra tracing \
		--constraint requirements/dev.lock --output-file requirements/production.lock
	$(COMPILE) --extra mysql --extra server --group bench --constraint requirements/dev.lock \
		--output-file requirements/bench.lock
