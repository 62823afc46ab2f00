# make test, demo, docs, bench, lint, clean. Everything is installed into $(VENV), nothing elsewhere.
#
#   PYTHON=python3.12        the interpreter (default: the newest of 3.10 to 3.13)
#   VENV=.venv-3.12          where its virtual environment goes
#   CONSTRAINTS=build/lowest.txt   install the lowest versions that setup.cfg allows
#   TESTS=..., PYTEST_ARGS=...     what to run, and how

VENV = .venv
CONSTRAINTS =
TESTS = twsessions
PYTEST_ARGS =

ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for p in python3.13 python3.12 python3.11 python3.10 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo "$$p" && break; done)
endif
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)

# Named after what it was made with, so that another interpreter makes it anew.
STAMP := .ready-$(VERSION)$(if $(CONSTRAINTS),-constrained)
PREREQUISITES := setup.cfg pyproject.toml $(CONSTRAINTS)

# $(call environment,DIRECTORY,EXTRA). The compatible editable mode puts the
# checkout itself on the path. A file in the directory's place is one of tox's,
# saying where its own environment is.
define environment
@test -n "$(VERSION)" || { echo "No Python >= 3.10 found$(if $(PYTHON), as '$(PYTHON)'): try make PYTHON=/path/to/python3" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
@if test -f $(1); then rm $(1); fi
$(PYTHON) -m venv --clear $(1)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) \
	--config-settings editable_mode=compat --editable '.[$(2)]'
@touch $@
endef

.PHONY: test demo docs bench lint clean venv venv-lint

test: $(VENV)/$(STAMP)
	$(VENV)/bin/python -m pytest -q $(PYTEST_ARGS) $(TESTS)

demo: $(VENV)/$(STAMP)
	exec $(VENV)/bin/twistd --pidfile= -ny examples/demo.py

bench: $(VENV)-bench/$(STAMP) build/peers/node_modules
	$(VENV)-bench/bin/python -m benchmarks

docs: $(VENV)-docs/$(STAMP)
	$(VENV)-docs/bin/python -m sphinx -W --keep-going -b html docs docs/_build/html
	$(VENV)-docs/bin/python -m pydoctor --project-name=twsessions --docformat=epytext \
		--privacy='HIDDEN:twsessions.test' --privacy='HIDDEN:twsessions.test.**' \
		--html-output=docs/_build/html/api --quiet twsessions

lint: $(VENV)-lint/$(STAMP)
	@status=0; set -x; \
	$(VENV)-lint/bin/python -m ruff check . || status=1; \
	$(VENV)-lint/bin/python -m mypy --strict || status=1; \
	{ set +x; } 2>/dev/null; exit $$status

venv: $(VENV)/$(STAMP)

venv-lint: $(VENV)-lint/$(STAMP)

$(VENV)/$(STAMP): $(PREREQUISITES)
	$(call environment,$(VENV),test)

$(VENV)-bench/$(STAMP): $(PREREQUISITES)
	$(call environment,$(VENV)-bench,bench)

# Needs npm, and redis-server on the path.
build/peers/node_modules: Makefile
	mkdir -p build/peers
	npm install --silent --no-fund --prefix build/peers \
		express express-session connect-redis redis sockjs
	@touch $@

$(VENV)-docs/$(STAMP): $(PREREQUISITES)
	$(call environment,$(VENV)-docs,docs)

$(VENV)-lint/$(STAMP): $(PREREQUISITES)
	$(call environment,$(VENV)-lint,lint)

# "twisted >= 1.2" in setup.cfg becomes "twisted == 1.2".
build/lowest.txt: setup.cfg
	@mkdir -p $(@D)
	$(PYTHON) -c 'import configparser, re; c = configparser.ConfigParser(); c.read("setup.cfg"); \
	lines = [c["options"]["install_requires"], *c["options.extras_require"].values()]; \
	print(*sorted({re.sub(r"\[.*\]", "", line).replace(">=", "==") \
	for line in "\n".join(lines).split("\n") if ">=" in line and ";" not in line}), sep="\n")' >$@.new
	mv $@.new $@

clean:
	rm -rf .venv .venv-* build dist docs/_build twsessions.egg-info \
		.pytest_cache .hypothesis .mypy_cache .ruff_cache
	find $(wildcard twsessions twisted examples benchmarks) -name __pycache__ -type d -prune -exec rm -rf {} +
